import json
from collections import Counter
from pathlib import Path

import pytest

from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.formats import FORMATS, format_named, format_table
from uni_dpo.data.formats.base import SourceRow
from uni_dpo.data.formats.stance import make_stance_pairs, stance_pairs
from uni_dpo.data.pair import PreferencePair
from uni_dpo.errors import UniDPOError

FIXTURES = Path(__file__).parent / "fixtures"
HARBOUR = {"bytes": None, "path": "harbour/1.png"}
BOATS = ("<image>How many boats are in the harbour?", "Three boats.", "No boats.")
STEERS = PreferencePair(
    "And who steers them?",
    "Nobody is on board.",
    "A captain each.",
    4.0,
    2.5,
    ("harbour/1.png",),
    None,
    "Answer in one sentence.",
    (("<image>How many boats?", "Three."),),
)
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."

EXPECTED: dict[str, list[PreferencePair]] = {
    "llamafactory": [PreferencePair(*BOATS, 4.5, 1.0, ("harbour/1.png",), "a1"), STEERS],
    "llamafactory-sharegpt": [STEERS],
    "llamafactory-openai": [STEERS],
    "trl": [PreferencePair(*BOATS, images=("harbour/1.png",))],
    "trl-text": [PreferencePair("Name a colour.", "Blue.", "Seven.", 9.0, 3.0)],
    "trl-plain": [PreferencePair(*BOATS, images=("harbour/1.png",))],
    "rlaif-v": [PreferencePair(*BOATS, images=(HARBOUR,), id="17")],
    "rlaif-v-text": [PreferencePair(*BOATS, images=(HARBOUR,), id=17)],
    "vqa-rad": [
        PreferencePair("<image>Is there a fracture?", "No", "Yes", images=({"bytes": None, "path": "scan/1.png"},))
    ],
    "mm-rlhf": [
        PreferencePair(BOATS[0], "Three boats.", "Two boats.", 5.0, 3.0, ("harbour/1.png",), "m1"),
        PreferencePair(BOATS[0], "Three boats.", "A pair.", 5.0, 3.0, ("harbour/1.png",), "m1"),
        PreferencePair(BOATS[0], "Three boats.", "No boats.", 5.0, 1.0, ("harbour/1.png",), "m1"),
        PreferencePair(BOATS[0], "Two boats.", "No boats.", 3.0, 1.0, ("harbour/1.png",), "m1"),
        PreferencePair(BOATS[0], "A pair.", "No boats.", 3.0, 1.0, ("harbour/1.png",), "m1"),
        PreferencePair("<image>What is the weather?", "Sun.", "Rain.", images=("harbour/1.png",), id="m2"),
    ],
    "vlfeedback": [
        PreferencePair("<image>How many boats?", "Three boats.", "No boats.", 4.5, 8 / 3, ("harbour/1.png",), "v1"),
        PreferencePair("<image>What is the weather?", "Sun.", "Rain.", 3.0, 1.0, ("harbour/1.png",), "v2"),
    ],
    "llamafactory-ranked": [
        *(
            PreferencePair("<image>How many boats?", *pair, ("harbour/1.png",), "q1", "Be brief.")
            for pair in (
                ("Three boats.", "Two boats.", 5.0, 3.0),
                ("Three boats.", "No boats.", 5.0, 1.0),
                ("Three boats.", "Two boats.", 4.5, 3.0),
                ("Three boats.", "No boats.", 4.5, 1.0),
                ("Two boats.", "No boats.", 3.0, 1.0),
            )
        ),
        PreferencePair("Name a colour.", "Blue.", "Seven.", 4.0, 0.0, history=(("Hm?", "Hm."),)),
    ],
    "llava": [
        PreferencePair(
            "How many boats are in the harbour?\n<image>", *answers, images=("000000013249.jpg",), id="000000013249"
        )
        for answers in (("Three boats.", "Two boats."), ("Three boats.", "No boats."), ("Two boats.", "No boats."))
    ],
    "ultrafeedback": [PreferencePair("Name a colour.", "Blue.", "Seven.", 4.5, 2.0, id="u1")],
    "swift": [
        PreferencePair("<image>How many boats?", "Three.", "None.", images=("harbour/1.png",), system="Be brief."),
        PreferencePair(
            "<image>How many boats?", "Three.", "Three.", images=(HARBOUR,), rejected_images=("harbour/2.png",)
        ),
        PreferencePair(
            "And now?", "Two.", "Nine.", images=("harbour/1.png",), history=(("<image>How many boats?", "Three."),)
        ),
    ],
    "povid": [PreferencePair("<image>\nHow many boats?", "Three.", "None.", images=("harbour/1.png",), id="p1")],
    "llava-rlhf": [PreferencePair("<image>\nHow many boats?", "Three.", "None.", images=("harbour/1.png",), id="l1")],
    "math": [PreferencePair("What is 2 + 3?", "2 + 3 = \\boxed{5}", "\\boxed{6}", 1.0, -0.5, system=BOXED)],
}
READ_LOSSES = {
    "llamafactory-ranked": {"rows that make no pair, left out": 1},
    "mm-rlhf": {"pairs of equal answers, scores or ranks, left out": 1},
    "vlfeedback": {"answers without a rating, left out": 1, "ratings that are no number, left out": 4},
}


def fixture(name: str) -> list[dict]:
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


def pairs_of(name: str, rows: list[dict], losses: Counter[str], pairing="all") -> list[PreferencePair]:
    read = FORMATS[name].read
    assert read is not None
    return [pair for row in rows for pair in read(SourceRow(row, losses, pairing))]


def test_every_format_has_a_fixture() -> None:
    assert {path.stem for path in FIXTURES.iterdir()} == set(FORMATS)
    assert set(EXPECTED) == {name for name, form in FORMATS.items() if form.read} - {"stance"}
    assert format_table().count("\n") == len(FORMATS) + 1
    assert format_table() in (Path(__file__).parents[3] / "docs" / "prepare.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_row_in_the_formats_real_shape_is_read(name) -> None:
    losses: Counter[str] = Counter()
    assert pairs_of(name, fixture(name), losses) == EXPECTED[name]
    assert dict(losses) == READ_LOSSES.get(name, {})


@pytest.mark.parametrize("name", [name for name in EXPECTED if FORMATS[name].write])
def test_what_is_written_is_read_back_the_same(name) -> None:
    losses: Counter[str] = Counter()
    write = FORMATS[name].write
    pairs = EXPECTED[name]
    rows = [write(pair, losses) for pair in pairs]
    assert pairs_of(name, json.loads(json.dumps(rows)), losses) == pairs
    assert not +losses


FULL = PreferencePair(
    "<image>Then <image>?",
    "Yes.",
    "No.",
    4.0,
    1.0,
    ("a.png", "b.png", "c.png"),
    "p",
    "Be brief.",
    (("<image>Hm?", "Hm."),),
)
WRITE_LOSSES = {
    "llamafactory": {},
    "llamafactory-sharegpt": {},
    "llamafactory-openai": {},
    "trl": {},
    "trl-text": {"images": 1},
    "trl-plain": {"system": 1, "history": 1},
    "rlaif-v": {"scores": 1, "system": 1, "history": 1, "images after the first": 2, "place of <image> in the text": 1},
    "rlaif-v-text": {
        "scores": 1, "system": 1, "history": 1, "images after the first": 2, "place of <image> in the text": 1,
    },
    "vqa-rad": {
        "scores": 1, "system": 1, "history": 1, "id": 1,
        "images after the first": 2, "place of <image> in the text": 1,
    },
    "llava": {"scores": 1, "system": 1},
    "ultrafeedback": {"images": 1},
    "math": {"images": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", WRITE_LOSSES)
def test_what_a_format_cannot_hold_is_counted_by_name(name) -> None:
    losses: Counter[str] = Counter()
    row = FORMATS[name].write(FULL, losses)
    assert dict(+losses) == WRITE_LOSSES[name]
    if not WRITE_LOSSES[name]:
        assert pairs_of(name, [json.loads(json.dumps(row))], losses) == [FULL]


def test_all_written_formats_are_in_the_table_of_losses() -> None:
    assert set(WRITE_LOSSES) == {name for name, form in FORMATS.items() if form.write}


@pytest.mark.parametrize(
    ("pairing", "answers"),
    [
        ("all", [("Three boats.", "Two boats."), ("Three boats.", "No boats."), ("Two boats.", "No boats.")]),
        ("neighbours", [("Three boats.", "Two boats."), ("Two boats.", "No boats.")]),
        ("ends", [("Three boats.", "No boats.")]),
    ],
)
def test_pairs_of_a_ranked_list(pairing, answers) -> None:
    pairs = pairs_of("llava", fixture("llava"), Counter(), pairing)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == answers


def test_llava_fine_tuning_rows_go_to_sharegpt_and_back() -> None:
    losses: Counter[str] = Counter()
    to_llamafactory, back = FORMATS["llava-sft"].remap
    row = to_llamafactory(SourceRow(fixture("llava-sft")[0], losses))
    assert row["images"] == ["coco/1.jpg", "coco/2.jpg"]
    assert row["conversations"][0]["value"] == "<image><image>\nWhat differs?"
    assert losses == {"<image> added beside the first one": 1}
    again = back(SourceRow(row, losses))
    assert again == fixture("llava-sft")[0] | {"conversations": row["conversations"]}


def test_people_s_answers_become_fine_tuning_data_with_the_most_frequent_one() -> None:
    losses: Counter[str] = Counter()
    to_llamafactory, back = FORMATS["textvqa"].remap
    assert to_llamafactory(SourceRow(fixture("textvqa")[0], losses)) == {
        "id": 34602,
        "conversations": [
            {"from": "human", "value": "<image>What is the brand of this camera?"},
            {"from": "gpt", "value": "nokia"},
        ],
        "images": ["harbour/1.png"],
    }
    assert losses == {"answers of people beside the most frequent": 2}
    assert back is None


def said(*texts: object) -> list[dict]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "a.png", "text": None},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "input_image", "image_url": "a.png"},
        {"type": "image"},
    ],
)
def test_images_inside_messages_are_kept(part) -> None:
    prompt = said(
        [part, {"type": "text", "text": "What?"}], "This.", ["And ", {"type": "image", "image": "b.png"}, "?"]
    )
    row = {"prompt": prompt, "chosen": said("", "a")[1:], "rejected": "b"}
    if part == {"type": "image"}:
        row["images"] = ["a.png"]
    expected = PreferencePair("And <image>?", "a", "b", images=("a.png", "b.png"), history=(("<image>What?", "This."),))
    assert pairs_of("trl", [row], Counter()) == [expected]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": said([{"type": "video", "video": "v.mp4"}])}, "part of type 'video'"),
        ({"prompt": said([7])}, "a text, or a part"),
        ({"prompt": said([{"type": "image"}])}, "1 × <image>, 0 images"),
        ({"prompt": said("q"), "chosen": said("", [{"type": "image", "image": "a.png"}])[1:]}, "image in an answer"),
        ({"chosen": said("q", "a", "go on", "b"), "rejected": said("q", "x", "go on", "c")}, "not those of `chosen`"),
        ({"prompt": "q", "chosen": said("", "a", "q2", "a2")[1:]}, "not those of `chosen`"),
        ({"prompt": "q", "chosen": said("another question", "a")}, "not those of `chosen`"),
        ({"prompt": "q", "chosen": said("q")}, "ends with role 'user'"),
        ({"prompt": json.dumps(said("q"))}, "messages that were written as a text"),
        ({"prompt": "q", "chosen": str(said("q", "a"))}, "messages that were written as a text"),
        ({"prompt": "q", "score_chosen": float("nan")}, "a finite number"),
    ],
)
@pytest.mark.parametrize("name", ["trl", "ultrafeedback"])
def test_what_a_pair_cannot_hold_is_refused(row, words, name) -> None:
    with pytest.raises(PreferenceDataError, match=words):
        pairs_of(name, [{"chosen": "a", "rejected": "b"} | row], Counter())


def test_a_path_within_the_text_of_ms_swift_2_is_refused() -> None:
    row = {"query": "<img>a.png</img>What?", "response": "a", "rejected_response": "b"}
    with pytest.raises(PreferenceDataError, match="name the file under `images`"):
        pairs_of("swift", [row], Counter())


def test_equal_ranks_and_single_answers_make_no_pair() -> None:
    losses: Counter[str] = Counter()
    answers = [{"response": text, "rank": rank} for text, rank in (("x", 1), ("y", 1), ("z", 2))]
    rows = [{"prompt": "q", "responses": answers}, {"prompt": "q", "responses": answers[:1]}]
    assert [(p.chosen, p.rejected) for p in pairs_of("mm-rlhf", rows, losses)] == [("x", "z"), ("y", "z")]
    assert losses == {
        "pairs of equal answers, scores or ranks, left out": 1,
        "rows with fewer than two answers, left out": 1,
    }


def test_ratings_that_are_no_number_do_not_count() -> None:
    ratings = {"x": ("5", "nan"), "y": ("3", "N/A"), "z": ("inf", True)}
    completions = [
        {"response": text, "annotations": {str(index): {"Rating": rating} for index, rating in enumerate(both)}}
        for text, both in ratings.items()
    ]
    losses: Counter[str] = Counter()
    (pair,) = pairs_of("vlfeedback", [{"prompt": "q", "completions": completions}], losses)
    assert (pair.chosen, pair.rejected, pair.score_chosen, pair.score_rejected) == ("x", "y", 5.0, 3.0)
    assert losses == {"ratings that are no number, left out": 4, "answers without a rating, left out": 1}


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("a.jpg,b.png", ("a.jpg", "b.png")),
        ("Paris, France.png", ("Paris, France.png",)),
        ("data:image/png;base64,AAAA", ("data:image/png;base64,AAAA",)),
        (["a.png", "b, c.png"], ("a.png", "b, c.png")),
        (["a,b.png"], ("a,b.png",)),
    ],
)
def test_commas_in_llava_s_images(image, expected) -> None:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": ["good", {"text": "bad"}]}]
    (pair,) = pairs_of("llava", [{"image": image, "conversations": turns}], Counter())
    assert (pair.images, pair.instruction) == (expected, "<image>" * len(expected) + "What?")
    assert (pair.chosen, pair.rejected) == ("good", "bad")
    assert pairs_of("llava", [FORMATS["llava"].write(pair, Counter())], Counter()) == [pair]


@pytest.mark.parametrize("name", ["trl-text", "ultrafeedback", "math"])
def test_no_placeholder_stays_where_the_image_is_lost(name) -> None:
    losses: Counter[str] = Counter()
    assert "<image>" not in json.dumps(FORMATS[name].write(FULL, losses))
    assert losses["images"] == 1


def test_a_saved_parquet_form_of_messages_is_read() -> None:
    """Parquet gives every part of a message all keys; those that it did not have are null."""
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    answer = [{"role": "assistant", "content": [{"type": "text", "text": "This."}]}]
    row = {"prompt": [{"role": "user", "content": parts}], "chosen": answer, "rejected": answer, "images": [b"png"]}
    assert pairs_of("trl", [row], Counter()) == [PreferencePair("<image>What?", "This.", "This.", images=(b"png",))]


def test_the_template_s_own_end_is_not_part_of_an_answer() -> None:
    losses: Counter[str] = Counter()
    row = fixture("math")[0] | {"chosen": "5<|im_end|>\n"}
    assert pairs_of("math", [row], losses)[0].chosen == "5"
    assert sum(losses.values()) == 1


BROKEN = {
    "llamafactory": {"instruction": None, "chosen": "a", "rejected": "b"},
    "trl": {
        "prompt": [{"role": "assistant", "content": "x"}],
        "chosen": [{"role": "a", "content": ""}],
        "rejected": [{}],
    },
    "rlaif-v-text": {"text": "{", "image": "a.png"},
    "mm-rlhf": {"prompt": "q", "responses": [{"response": "a", "score": 1}, {"response": "b"}]},
    "vlfeedback": {"prompt": "q", "completions": "none"},
    "llava": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "one answer"}]},
    "ultrafeedback": {"chosen": [{"role": "user", "content": "q"}], "rejected": []},
    "math": {"prompt": "What is 2 + 3?", "chosen": "5", "rejected": "6"},
    "swift": {"query": "q", "response": "a", "rejected_response": "b", "history": ["hello", "hi"]},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_row_of_another_shape_is_refused_with_the_field(name) -> None:
    with pytest.raises(PreferenceDataError) as caught:
        pairs_of(name, [BROKEN[name]], Counter())
    assert caught.value.faults[0].field


def test_an_unknown_format_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UniDPOError, match="no format 'xml'; use one of llamafactory, "):
        format_named("xml")


@pytest.mark.parametrize(("ratio", "supporting"), [(0.0, 0), (0.5, 1), (0.7, 2), (1.0, 3), (1 / 3, 1)])
def test_the_first_share_of_the_rows_chooses_support(ratio, supporting) -> None:
    rows = fixture("stance")
    table = stance_pairs(rows, ratio)
    assert [row["position"] for row in table] == ["support"] * supporting + ["oppose"] * (3 - supporting)
    for row, made in zip(rows, table, strict=True):
        assert list(made) == ["prompt", "position", "chosen", "rejected"]
        assert made["chosen"] == row[made["position"]]
        assert {made["chosen"], made["rejected"]} == {row["support"], row["oppose"]}
    with pytest.raises(UniDPOError, match="support_ratio"):
        stance_pairs(rows, 1.1)


def test_stance_pairs_from_file_to_file(tmp_path) -> None:
    counts = make_stance_pairs(FIXTURES / "stance.json", tmp_path / "p.json", support_ratio=0.5, count=2)
    assert counts == {"support": 1, "oppose": 1}
    pairs = pairs_of("stance", json.loads((tmp_path / "p.json").read_text(encoding="utf-8")), Counter())
    assert pairs == [
        PreferencePair("真人化是否合適？", "合適。", "不合適。"),
        PreferencePair("Is rain good?", "It wets shoes.", "It waters fields."),
    ]


@pytest.mark.parametrize(
    ("row", "instruction"),
    [
        ({"instruction": "Read.", "input": "A sign."}, "Read.\nA sign."),
        ({"instruction": "Read.", "input": ""}, "Read."),
        ({"instruction": "Read.", "input": None}, "Read."),
    ],
)
def test_the_input_below_an_instruction_is_part_of_the_question(row, instruction) -> None:
    losses: Counter[str] = Counter()
    (pair,) = pairs_of("llamafactory", [{**row, "chosen": "a", "rejected": "b"}], losses)
    assert pair.instruction == instruction
    assert not losses


def test_the_system_column_of_a_conversation_is_its_system_prompt() -> None:
    """As LlamaFactory has it: a system turn comes before the column."""
    turns = [{"from": "human", "value": "q"}]
    answers = {"chosen": {"from": "gpt", "value": "c"}, "rejected": {"from": "gpt", "value": "r"}, "system": "column"}
    losses: Counter[str] = Counter()
    (plain,) = pairs_of("llamafactory-sharegpt", [{"conversations": turns} | answers], losses)
    (both,) = pairs_of(
        "llamafactory-sharegpt", [{"conversations": [{"from": "system", "value": "turn"}, *turns]} | answers], losses
    )
    (of_trl,) = pairs_of("trl", [{"prompt": "q", "chosen": "a", "rejected": "b", "system": "column"}], losses)
    assert (plain.system, both.system, of_trl.system) == ("column", "turn", "column")
    assert not losses


def test_what_messages_hold_beside_texts_is_counted() -> None:
    losses: Counter[str] = Counter()
    reasoned = {"role": "assistant", "content": "c", "reasoning_content": "because", "name": None}
    pairs_of(
        "trl", [{"prompt": "q", "chosen": [reasoned], "rejected": [{"role": "assistant", "content": "r"}]}], losses
    )
    assert losses == {"reasoning_content of messages": 1}
    losses.clear()
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"}]
    row = {"conversations": [*turns, {"from": "observation", "value": "o"}]}
    row |= {name: {"from": "gpt", "value": name} for name in ("chosen", "rejected")}
    pairs_of("llamafactory-sharegpt", [row], losses)
    assert losses == {"tool calls and results, kept as plain turns": 2}


@pytest.mark.parametrize(
    "chosen",
    [
        {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"content": [{"type": "image"}, {"type": "text", "text": "c"}]},
        {"content": "A <image> here"},
    ],
)
def test_answers_that_are_no_texts_alone_are_refused(chosen) -> None:
    row = {"prompt": "q", "images": ["a.png"], "rejected": [{"role": "assistant", "content": "r"}]}
    with pytest.raises(PreferenceDataError, match="chosen"):
        pairs_of("trl", [row | {"chosen": [{"role": "assistant"} | chosen]}], Counter())


@pytest.mark.parametrize("images", [["a.png"], ["a.png", "b.png"]])
@pytest.mark.parametrize("name", ["llava", "llava-sft"])
def test_more_placeholders_after_the_first_turn_than_images_are_refused(name, images) -> None:
    said = ["hello", "hi", "<image><image><image>q", ["a", "b"] if name == "llava" else "a"]
    turns = [{"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(said)]
    row = {"image": images, "conversations": turns}
    with pytest.raises(PreferenceDataError, match=r"3 × <image> after the first turn, \d images; remove the surplus"):
        list(FORMATS[name].read(SourceRow(row))) if name == "llava" else FORMATS[name].remap[0](SourceRow(row))
