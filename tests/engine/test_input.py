import base64
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from uni_dpo.data.questions import InputOptions, Question, read_questions
from uni_dpo.data.tables.splitting import split
from uni_dpo.engine.samplers import ModelSampler, ModelSamplerOptions
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import load_grader
from uni_dpo.models.backends import Sample


@pytest.fixture
def image(digits) -> Path:
    return digits["train"][0].image


def read(path, tmp_path, **options):
    return read_questions(InputOptions(str(path), **options), tmp_path / "images")


def write_jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_base64_and_path_images_and_text_only(tmp_path, image):
    encoded = base64.b64encode(image.read_bytes()).decode()
    path = write_jsonl(
        tmp_path / "q.jsonl",
        {"question_id": "c", "question": "<image>\nWhat?", "image": encoded},
        {"question_id": "b", "question": "What?", "image": f"data:image/png;base64,{encoded}"},
        {"question_id": "a", "question": "What?", "image_path": str(image), "answer": 3},
        {"question_id": "d", "question": "Why?"},
    )
    a, b, c, d = read(path, tmp_path)
    assert [q.id for q in (a, b, c, d)] == ["a", "b", "c", "d"]
    assert c.text == "What?"
    assert Path(c.images[0]).read_bytes() == image.read_bytes()
    assert b.images == c.images  # the same bytes, one file
    assert a.images == (str(image.resolve()),)
    assert a.reference == "3"
    assert d.images == ()


def test_parquet_with_image_bytes(tmp_path, image):
    table = pa.table(
        {"idx": [7, 5], "question": ["x", "y"], "image": [{"bytes": image.read_bytes(), "path": "p.png"}] * 2}
    )
    pq.write_table(table, tmp_path / "q.parquet")
    first, second = read(tmp_path / "q.parquet", tmp_path)
    assert (first.id, first.text, second.id) == ("5", "y", "7")
    assert Path(first.images[0]).read_bytes() == image.read_bytes()


def test_rows_of_a_preference_file_are_questions_too(tmp_path, image):
    rows = [{"instruction": "<image>Which?", "chosen": "a", "rejected": "b", "images": [image.name]}]
    (tmp_path / "p.json").write_text(json.dumps(rows), encoding="utf-8")
    (question,) = read(tmp_path / "p.json", tmp_path, image_root=str(image.parent))
    assert question.text == "Which?"
    assert question.images == (str(image.resolve()),)


def test_the_first_user_turn_of_a_conversation_is_the_question(tmp_path, image):
    path = write_jsonl(
        tmp_path / "q.jsonl",
        {
            "id": "openai",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "<image>What?"},
                {"role": "assistant", "content": "A digit."},
            ],
            "images": [str(image)],
        },
        {"id": "sharegpt", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
    )
    openai, sharegpt = read(path, tmp_path)
    assert (openai.text, openai.images) == ("What?", (str(image),))
    assert (sharegpt.text, sharegpt.images) == ("Why?", ())


def test_without_ids_the_content_is_the_id_whatever_the_order(tmp_path):
    rows = [{"question": "x"}, {"question": "y"}, {"question": "x"}]
    one = read(write_jsonl(tmp_path / "a.jsonl", *rows), tmp_path)
    other = read(write_jsonl(tmp_path / "b.jsonl", *reversed(rows)), tmp_path)
    assert one == other
    assert len(one) == 2


def test_rows_that_repeat_a_question_are_counted(tmp_path, capsys):
    path = write_jsonl(tmp_path / "q.jsonl", *({"question": text} for text in ("one", "two", "one", "one")))
    assert len(read(path, tmp_path)) == 2
    assert "q.jsonl: 2 of its rows repeat a question, which is asked once" in capsys.readouterr().err


def test_options_become_lines_of_the_question(tmp_path):
    (question,) = read(write_jsonl(tmp_path / "a.jsonl", {"question": "x", "options": ["cat", "dog"]}), tmp_path)
    assert question.text == "x\nA. cat\nB. dog"
    assert question.options == {"A": "cat", "B": "dog"}


def test_choices_are_options_too(tmp_path):
    """ScienceQA calls them so."""
    row = {"question": "x", "choices": {"A": "cat", "B": "dog"}}
    (question,) = read(write_jsonl(tmp_path / "a.jsonl", row), tmp_path)
    assert question.text == "x\nA. cat\nB. dog"
    assert question.options == {"A": "cat", "B": "dog"}


def test_options_beyond_z_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"question": "x", "options": [str(number) for number in range(27)]})
    with pytest.raises(UniDPOError, match="'options': 27 of them; at most 26 have a letter"):
        read(path, tmp_path)


def test_the_limit_takes_the_first_by_id(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", *({"id": i, "question": "x"} for i in (3, 1, 2)))
    assert [q.id for q in read(path, tmp_path, limit=2)] == ["1", "2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": " "}, "row 1 (line 2), field 'question': a text is expected"),
        ({"text": "x"}, "row 1 (line 2), field 'question': a text is expected, and the columns are ['"),
        ({"question": "x", "image_path": "gone.png"}, "row 1 (line 2), field 'image_path': no file gone.png"),
        ({"question": "x", "image": "aGVsbG8="}, "row 1 (line 2), field 'image': no file aGVsbG8="),
        ({"question": "x", "image": 7}, "row 1 (line 2), field 'image': 7; a path, base64 text"),
        ({"question": "x", "options": 7}, "row 1 (line 2), field 'options'"),
        ({"question": "x", "answers": [["x"]]}, "row 1 (line 2), field 'answers': ['x']; a text"),
        ({"question": "x", "id": ["x"]}, "row 1 (line 2), field 'id': ['x']; a number or a text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "field 'question': a conversation in which the user"),
        ({"question": "x", "id": "first"}, "row 1 (line 2): the id 'first' is also that of row 0 (line 1)"),
    ],
)
def test_faults_name_row_and_field(tmp_path, row, message):
    path = write_jsonl(tmp_path / "a.jsonl", {"id": "first", "question": "fine"}, row)
    with pytest.raises(UniDPOError) as caught:
        read(path, tmp_path)
    assert message in str(caught.value)


def test_no_image_outside_the_root(tmp_path, image):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(image.read_bytes())
    for escape in ("../secret.png", str(tmp_path / "secret.png")):
        path = write_jsonl(tmp_path / "a.jsonl", {"question": "x", "image_path": escape})
        with pytest.raises(UniDPOError, match=r"leaves .*keep images below it"):
            read(path, tmp_path, image_root=str(root))


def test_a_part_that_was_split_off_elsewhere_finds_its_images_in_the_root(tmp_path, image):
    """`data split` writes paths that lead from where the part is."""
    mine, parts = tmp_path / "mine", tmp_path / "work" / "questions"
    mine.mkdir()
    (mine / "1.png").write_bytes(image.read_bytes())
    source = write_jsonl(mine / "q.jsonl", *({"question": "x", "image": "1.png"} for _ in range(2)))
    split(source, {parts / "a.jsonl": 0.5, parts / "b.jsonl": 0.5}, by=None)
    (question,) = read(parts / "a.jsonl", tmp_path, image_root=str(mine))
    assert question.images == (str((mine / "1.png").resolve()),)


@pytest.mark.parametrize("name", ["", "missing.jsonl"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(UniDPOError, match=name or "input.path"):
        read_questions(InputOptions(name and str(tmp_path / name)), tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(UniDPOError, match="holds no questions"):
        read(write_jsonl(tmp_path / "a.jsonl"), tmp_path)


def test_all_images_of_a_row_are_kept_in_order(tmp_path, digits):
    one, other = (digits["train"][index].image for index in (0, 1))
    part = {"type": "image_url", "image_url": {"url": other.name}}
    for name in ("image", "images"):
        path = write_jsonl(tmp_path / "q.jsonl", {"question": "Which?", name: [str(one), str(other)]})
        assert read(path, tmp_path)[0].images == (str(one), str(other))
    content = [{"type": "image"}, part, "Which", {"type": "text", "text": " is it?"}]
    path = write_jsonl(one.parent / "q.jsonl", {"messages": [{"role": "user", "content": content}], "image": one.name})
    (question,) = read(path, tmp_path)
    assert (question.text, question.images) == ("Which is it?", (str(one), str(other)))
    path.unlink()


def test_a_small_image_in_base64_is_an_image(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (9, 7), (1, 2, 3)).save(picture, "PNG")
    encoded = base64.b64encode(picture.getvalue()).decode()
    wrapped = "\n".join(encoded[at : at + 76] for at in range(0, len(encoded), 76))
    path = write_jsonl(
        tmp_path / "q.jsonl", *({"id": i, "question": "?", "image": t} for i, t in enumerate((encoded, wrapped)))
    )
    first, second = read(path, tmp_path)
    assert Path(first.images[0]).read_bytes() == picture.getvalue()
    assert first.images == second.images


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("", None), ("  ", None), (None, None), (float("nan"), None), ("nan", None), ([], None), (3, "3"), (3.0, "3"),
     (2.5, "2.5"), (0, "0"), ("no", "no"), ({"text": "cat"}, "cat")],
)  # fmt: skip
def test_what_is_a_label(tmp_path, answer, reference):
    (question,) = read(write_jsonl(tmp_path / "q.jsonl", {"id": 1, "question": "?", "answer": answer}), tmp_path)
    assert question.reference == reference


def test_integers_stay_integers_in_csv_and_parquet_with_a_gap(tmp_path):
    (tmp_path / "q.csv").write_text("id,question,answer\n007,how many?,3\n8,how many more?,\n", encoding="utf-8")
    assert [(q.id, q.reference) for q in read(tmp_path / "q.csv", tmp_path)] == [("007", "3"), ("8", None)]
    pq.write_table(pa.table({"id": [1, 2], "question": ["x", "y"], "answer": [3.0, None]}), tmp_path / "q.parquet")
    assert [(q.id, q.reference) for q in read(tmp_path / "q.parquet", tmp_path)] == [("1", "3"), ("2", None)]


def test_any_of_several_references_is_right_and_the_most_frequent_stands_for_them(tmp_path):
    people = ["nokia"] * 3 + ["toshiba"] + ["nokia"] * 6
    objects = [{"answer": word, "answer_confidence": "yes", "answer_id": n} for n, word in enumerate(people)]
    rows = [{"id": 1, "answers": people}, {"id": 2, "answers": objects}, {"id": 3, "answer": ["a", "b", "b"]}]
    path = write_jsonl(tmp_path / "q.jsonl", *({"question": "?"} | row for row in rows))
    first, second, third = read(path, tmp_path)
    assert (first.reference, second.reference, third.reference) == ("nokia", "nokia", "b")
    assert first.references == second.references == tuple(people)
    assert first.answers == second.answers == ()
    grade = load_grader("exact")
    assert [grade(answer, first) for answer in ("Nokia", "toshiba", "sony")] == [1, 1, 0]
    assert Question.from_row(first.to_row()) == first
    (rated, *_) = read(path, tmp_path, answers="given", limit=1)
    assert (rated.reference, rated.answers) == (None, tuple(people))


def test_answers_given_as_objects_are_their_texts(tmp_path):
    row = {"question": "?", "answers": [{"text": "a", "model": "m"}, {"response": "b"}, "c"], "system": "Be brief."}
    (question,) = read(write_jsonl(tmp_path / "q.jsonl", row), tmp_path)
    assert (question.answers, question.system) == (("a", "b", "c"), "Be brief.")


def test_a_row_s_system_prompt_reaches_the_model():
    class Backend:
        def generate(self, requests, sampling):
            return [[Sample(str(request.system), 1, True)] for request in requests]

    questions = [Question("a", "?", system="Be brief."), Question("b", "?")]
    sampler = ModelSampler(ModelSamplerOptions(n=1), {"sampler": Backend()}, 0)
    assert [sampled.answers for sampled in sampler.sample(questions)] == [("Be brief.",), ("None",)]


def test_a_folder_of_several_splits_is_not_mixed(tmp_path):
    for name in ("train", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", {"question": name})
    with pytest.raises(UniDPOError, match=r"several splits \(test, train\); name the folder or file of one"):
        read(tmp_path, tmp_path)
    assert [question.text for question in read(tmp_path / "test.jsonl", tmp_path)] == ["test"]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (b"1,caf\xe9?,5", "question"),
        (b"1,how many?,caf\xe9", "answer"),
        (b"caf\xe9,how many?,5", "id"),
    ],
)
def test_broken_utf8_is_named_by_file_row_and_field(tmp_path, row, field):
    (tmp_path / "q.csv").write_bytes(b"id,question,answer\n" + row + b"\n")
    with pytest.raises(UniDPOError, match=rf"q\.csv, row 0 \(line 2\), field '{field}': broken UTF-8 in "):
        read(tmp_path / "q.csv", tmp_path)


def test_options_in_lettered_columns_are_options(tmp_path):
    """VLMEvalKit's layout: empty cells are no options, and an A alone is another column."""
    (tmp_path / "q.csv").write_text("id,question,A,B,C,answer\n1,which?,x,y,,B\n", encoding="utf-8")
    (question,) = read(tmp_path / "q.csv", tmp_path)
    assert (question.text, question.options) == ("which?\nA. x\nB. y", {"A": "x", "B": "y"})
    (tmp_path / "a.csv").write_text("id,question,A\n1,which?,x\n", encoding="utf-8")
    assert read(tmp_path / "a.csv", tmp_path)[0].options == {}


def test_a_decimal_that_is_whole_is_an_integer(tmp_path):
    cells = pa.array(["5.00", "2.50"]).cast(pa.decimal128(5, 2))
    pq.write_table(pa.table({"id": [1, 2], "question": ["x", "y"], "answer": cells}), tmp_path / "q.parquet")
    assert [question.reference for question in read(tmp_path / "q.parquet", tmp_path)] == ["5", "2.50"]
