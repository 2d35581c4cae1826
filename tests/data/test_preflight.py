import json
import math
import random
import subprocess
import sys
from typing import Any

import pytest

from uni_dpo.data.checks.preflight import preflight
from uni_dpo.data.faults import PreferenceDataError

MESSAGES = {
    "formatting": "sharegpt",
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"},
}

PLANTED: dict[str, tuple[dict[str, Any], str, str]] = {
    "null chosen score": ({"score_chosen": None}, "score_null", "score_chosen"),
    "null rejected score": ({"score_rejected": None}, "score_null", "score_rejected"),
    "NaN score": ({"score_chosen": math.nan}, "score_nan", "score_chosen"),
    "infinite score": ({"score_rejected": -math.inf}, "score_infinite", "score_rejected"),
    "score past every float": ({"score_chosen": 10**400}, "score_infinite", "score_chosen"),
    "score as text": ({"score_chosen": "4.5"}, "score_text", "score_chosen"),
    "score as truth value": ({"score_rejected": True}, "score_boolean", "score_rejected"),
    "score as list": ({"score_chosen": [4]}, "score_type", "score_chosen"),
    "no score": ({"score_chosen": ...}, "score_missing", "score_chosen"),
    "missing image": ({"images": ["images/none.png"]}, "image_missing", "images[0]"),
    "zero-byte image": ({"images": ["images/empty.png"]}, "image_zero", "images[0]"),
    "SVG called PNG": ({"images": ["images/drawing.png"]}, "image_not_an_image", "images[0]"),
    "cut-off JPEG": ({"images": ["images/cut.jpg"]}, "image_unreadable", "images[0]"),
    "decompression bomb": ({"images": ["images/bomb.png"]}, "image_bomb", "images[0]"),
    "folder as image": ({"images": ["images"]}, "image_unreadable", "images[0]"),
    "path with ..": ({"images": ["images/../../../etc/hostname"]}, "image_outside", "images[0]"),
    "absolute path": ({"images": ["/etc/hostname"]}, "image_outside", "images[0]"),
    "address as image": ({"images": ["https://example.org/a.png"]}, "image_url", "images[0]"),
    "null image": ({"images": [None]}, "image_type", "images[0]"),
    "number as image": ({"images": [7]}, "image_type", "images[0]"),
    "two images, one token": ({"images": ["images/red.png"] * 2}, "image_count", "images"),
    "token without image": ({"images": []}, "image_count", "images"),
    "token in one answer": ({"rejected": "<image> A dog."}, "image_count", "images"),
    "empty chosen": ({"chosen": ""}, "answer_empty", "chosen"),
    "blank rejected": ({"rejected": " \n"}, "answer_empty", "rejected"),
    "null chosen": ({"chosen": None}, "text_null", "chosen"),
    "number as answer": ({"rejected": 3}, "text_type", "rejected"),
    "no rejected": ({"rejected": ...}, "column_missing", "rejected"),
    "broken text": ({"instruction": "<image>What\udcff?"}, "text_encoding", "instruction"),
    "list as prompt": ({"instruction": ["<image>What?"]}, "text_type", "instruction"),
}


def kinds(error: pytest.ExceptionInfo[PreferenceDataError]) -> list[tuple[int | None, str, str]]:
    return [(fault.row, fault.kind, fault.field) for fault in error.value.faults]


def test_thirty_planted_faults_are_all_found_and_none_is_invented(folder, good_row, register) -> None:
    assert len(PLANTED) == 30
    clean = [good_row(i) for i in range(200)]
    broken, expected = list(clean), []
    for index, name in zip(sorted(random.Random(0).sample(range(200), 30)), PLANTED, strict=True):
        changes, kind, field = PLANTED[name]
        broken[index] = good_row(index, **changes)
        expected.append((index, kind, field))
    with pytest.raises(PreferenceDataError) as caught:
        preflight([register("broken", broken)], folder / "data", folder)
    assert kinds(caught) == expected
    seen = preflight([register("clean", clean)], folder / "data", folder)
    assert (seen.rows, seen.scored, seen.warnings) == (200, 200, [])


@pytest.mark.parametrize(
    "marker", ["<|image_pad|>", "<|video_pad|>", "<|image|>", "<IMG_CONTEXT>", "<image_soft_token>"]
)
@pytest.mark.parametrize("column", ["instruction", "chosen", "rejected", "system", "history"])
def test_texts_that_a_model_reads_as_images_are_refused(folder, good_row, register, marker, column) -> None:
    text = f"{'<image>' if column == 'instruction' else ''}It prints {marker}."
    broken = good_row(1, **{column: [["a", text]] if column == "history" else text})
    columns = {name: name for name in ("system", "history", "chosen", "rejected", "images")} | {"prompt": "instruction"}
    with pytest.raises(PreferenceDataError) as caught:
        preflight([register("d", [good_row(system="", history=[]), broken], columns=columns)], folder / "data", folder)
    assert kinds(caught) == [(1, "model_marker", column)]


def test_the_message_lists_twenty_and_counts_all_over_all_datasets(folder, good_row, register) -> None:
    names = [register(name, [good_row(i, score_chosen=None) for i in range(15)]) for name in ("one", "two")]
    with pytest.raises(PreferenceDataError) as caught:
        preflight(names, folder / "data", folder)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the preference data has 30 faults:"
    place = f"{folder}/data/one.json, row 0 (line 1, id 'r0'), score_chosen"
    assert lines[1] == f"  {place}: null; give a finite number, or remove the row"
    assert len(lines) == 22
    assert lines[-1] == "  … and 10 more"


def test_paths_stay_in_a_media_folder_that_is_given_and_only_then(folder, good_row, register) -> None:
    outside = folder / "outside.png"
    outside.write_bytes((folder / "images" / "red.png").read_bytes())
    paths = ["red.png", "../outside.png", str(folder / "images" / "red.png"), str(outside)]
    name = register("d", [good_row(i, images=[path]) for i, path in enumerate(paths)])
    with pytest.raises(PreferenceDataError) as caught:
        preflight([name], folder / "data", folder / "images")
    assert kinds(caught) == [(1, "image_outside", "images[0]"), (3, "image_outside", "images[0]")]
    free = register("free", [good_row(images=[str(outside)]), good_row(images=["../images/red.png"])])
    assert preflight([free], folder / "data").rows == 2
    assert preflight([free], folder / "data", folder / "data").rows == 2


def test_a_few_inverted_scores_and_identical_answers_are_warnings(folder, good_row, register) -> None:
    rows = [good_row(i) for i in range(10)]
    for index in (2, 7):
        rows[index] |= {"score_chosen": 0.5}
    rows[4] |= {"rejected": rows[4]["chosen"]}
    seen = preflight([register("d", rows)], folder / "data", folder)
    assert seen.warnings == [
        "d: the chosen score is below the rejected one in 2 of 10 rows (rows 2, 7)",
        "d: the two answers are identical in 1 of 10 rows (row 4)",
    ]


@pytest.mark.parametrize(("inverted", "refused"), [(5, False), (6, True)])
def test_more_than_half_inverted_is_an_error(folder, good_row, register, inverted, refused) -> None:
    rows = [good_row(i, score_chosen=0.0 if i < inverted else 5.0) for i in range(10)]
    name = register("d", rows)
    if refused:
        with pytest.raises(PreferenceDataError, match="below the rejected score in 6 of 10 rows"):
            preflight([name], folder / "data", folder)
    else:
        (warning,) = preflight([name], folder / "data", folder).warnings
        assert "below the rejected one in 5 of 10 rows" in warning


@pytest.mark.parametrize(("tau_good", "warned"), [(4.5, False), (4.6, True), (None, False)])
def test_tau_good_above_every_chosen_score_is_one_warning(folder, good_row, register, tau_good, warned) -> None:
    name = register("d", [good_row(0), good_row(1, score_chosen=3.0)])
    seen = preflight([name], folder / "data", folder, tau_good=tau_good)
    assert [line for line in seen.warnings if "NLL" in line] == (
        ["no chosen score reaches tau_good = 4.6 (they lie in 3 … 4.5): the NLL term can never be active"]
        if warned
        else []
    )


def test_without_required_scores_any_score_will_do(folder, good_row, register) -> None:
    rows = [good_row(0, score_chosen=..., score_rejected=...), good_row(1, score_chosen="x"), good_row(2)]
    seen = preflight([register("d", rows)], folder / "data", folder, scores_required=False)
    assert (seen.rows, seen.scored) == (3, 1)


def test_score_columns_are_mapped(folder, good_row, register) -> None:
    row = good_row() | {"chosen_rating": 4, "rejected_rating": 2}
    del row["score_chosen"], row["score_rejected"]
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    columns |= {"score_chosen": "chosen_rating", "score_rejected": "rejected_rating"}
    name = register("d", [row], columns=columns)
    assert preflight([name], folder / "data", folder).scored == 1
    (warning,) = preflight([name], folder / "data", folder, tau_good=5.0).warnings
    assert "(they lie in 4 … 4)" in warning


def test_max_samples_checks_what_will_be_trained_on(folder, good_row, register) -> None:
    name = register("d", [good_row(0), good_row(1), good_row(2, score_chosen=None)])
    assert preflight([name], folder / "data", folder, max_samples=2).rows == 2


def test_a_folder_of_files_names_the_file_that_holds_the_fault(folder, good_row, register) -> None:
    parts = folder / "data" / "parts"
    parts.mkdir()
    (parts / "a.jsonl").write_text(json.dumps(good_row()) + "\n")
    (parts / "b.jsonl").write_text(json.dumps(good_row()) + "\n" + json.dumps(good_row(1, chosen="")) + "\n")
    with pytest.raises(
        PreferenceDataError, match=r"parts/b\.jsonl, row 1 \(line 2, id 'r1'\), chosen: an empty answer"
    ):
        preflight([register("d", None, file_name="parts")], folder / "data", folder)


@pytest.mark.parametrize(
    ("entry", "names", "message"),
    [
        ({}, ["pears"], "no dataset 'pears'; did you mean pairs\\?"),
        ({}, ["zzz"], "no dataset 'zzz'; it has pairs"),
        ({"ranking": False}, ["pairs"], 'add "ranking": true'),
        ({"file_name": "elsewhere.json"}, ["pairs"], "elsewhere.json: no such file or folder"),
        ({"formatting": "chatml"}, ["pairs"], "formatting: 'chatml'; use alpaca, sharegpt, openai"),
        ({"columns": {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}}, ["pairs"], "'?question"),
        (
            {"columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected", "images": "image"}},
            ["pairs"],
            "columns.images: no row has 'image'",
        ),
    ],
)
def test_a_wrong_entry_is_named(folder, good_row, register, entry, names, message) -> None:
    register("pairs", [good_row()], **entry)
    if "file_name" in entry:
        (folder / "data" / "elsewhere.json").unlink()
    with pytest.raises(PreferenceDataError, match=message):
        preflight(names, folder / "data", folder)


def test_what_is_not_on_this_machine_is_said_to_be_unchecked(folder, register) -> None:
    register("hub", None, file_name="unused.json", hf_hub_url="someone/pairs")
    seen = preflight(["hub"], folder / "data", folder)
    assert seen.warnings == ["hub: is not a local file and was not checked"]
    online = preflight(["a", "b"], "ONLINE").warnings
    assert online == [f"{name}: is not a local file and was not checked" for name in ("a", "b")]


def sharegpt_row(**changes: Any) -> dict[str, Any]:
    return {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<image>What is it?"},
            {"from": "gpt", "value": "An area."},
            {"from": "human", "value": "Of what colour?"},
        ],
        "chosen": {"from": "gpt", "value": "Red."},
        "rejected": {"from": "gpt", "value": "Blue."},
        "score_chosen": 4,
        "score_rejected": 2,
        "images": ["images/red.png"],
    } | changes


BROKEN_MESSAGES = {
    "roles_order": {"conversations": sharegpt_row()["conversations"][:3]},
    "message_shape": {"conversations": [{"from": "human"}]},
    "messages_type": {"conversations": "What is it?"},
    "answer_role": {"chosen": {"from": "human", "value": "Red."}},
    "answer_empty": {"rejected": {"from": "gpt", "value": ""}},
    "image_count": {"chosen": {"from": "gpt", "value": "<image>"}},
}


@pytest.mark.parametrize("kind", BROKEN_MESSAGES)
def test_broken_messages(folder, register, kind) -> None:
    name = register("d", [sharegpt_row(), sharegpt_row(**BROKEN_MESSAGES[kind])], **MESSAGES)
    with pytest.raises(PreferenceDataError) as caught:
        preflight([name], folder / "data", folder)
    assert [(row, found) for row, found, _ in kinds(caught)] == [(1, kind)]


@pytest.mark.parametrize(
    ("content", "file_name", "message"),
    [
        (b"\xef\xbb\xbf[]", "d.json", "holds no rows"),
        (b"[]", "d.json", "holds no rows"),
        (b'[{"instruction": 1', "d.json", "row 0 .*not JSON from here on"),
        (b"", "d.jsonl", "holds no rows"),
        (b"instruction", "d.txt", "files of type '.txt' are not read"),
    ],
)
def test_files_without_rows_or_with_a_broken_end(folder, register, content, file_name, message) -> None:
    (folder / "data" / file_name).write_bytes(content)
    with pytest.raises(PreferenceDataError, match=message):
        preflight([register("d", None, file_name=file_name)], folder / "data", folder)


def test_faults_before_a_broken_end_are_named_with_it(folder, good_row, register) -> None:
    name = register("cut", [good_row(0, chosen=""), good_row(1), good_row(2)])
    path = folder / "data" / "cut.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(PreferenceDataError) as caught:
        preflight([name], folder / "data", folder)
    assert [(row, kind) for row, kind, _ in kinds(caught)] == [(0, "answer_empty"), (2, "json_broken")]


def test_a_row_with_several_faults_names_them_all_at_once(folder, good_row, register) -> None:
    row = good_row(chosen="", rejected=3, score_chosen=None, images=["images/none.png", None, "images/empty.png"])
    with pytest.raises(PreferenceDataError) as caught:
        preflight([register("d", [row])], folder / "data", folder)
    assert kinds(caught) == [
        (0, "answer_empty", "chosen"),
        (0, "text_type", "rejected"),
        (0, "image_type", "images[1]"),
        (0, "score_null", "score_chosen"),
        (0, "image_missing", "images[0]"),
        (0, "image_zero", "images[2]"),
    ]


def test_the_preflight_needs_nothing_beside_what_llamafactory_installs() -> None:
    program = (
        "import sys; import uni_dpo.data.checks.preflight; "
        "print(sorted({'torch', 'transformers', 'datasets', 'pandas', 'rich', 'typer'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
