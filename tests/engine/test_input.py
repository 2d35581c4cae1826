import base64
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uni_dpo.data.questions import InputOptions, read_questions
from uni_dpo.errors import UniDPOError


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


def test_options_become_lines_of_the_question(tmp_path):
    (question,) = read(write_jsonl(tmp_path / "a.jsonl", {"question": "x", "options": ["cat", "dog"]}), tmp_path)
    assert question.text == "x\nA. cat\nB. dog"
    assert question.options == {"A": "cat", "B": "dog"}


def test_the_limit_takes_the_first_by_id(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", *({"id": i, "question": "x"} for i in (3, 1, 2)))
    assert [q.id for q in read(path, tmp_path, limit=2)] == ["1", "2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": " "}, "row 1, field 'question': a text is expected"),
        ({"text": "x"}, "row 1, field 'question': a text is expected, not None"),
        ({"question": "x", "image_path": "gone.png"}, "row 1, field 'image_path': there is no image file 'gone.png'"),
        ({"question": "x", "image": "aGVsbG8="}, "row 1, field 'image': these 5 bytes are no image"),
        ({"question": "x", "image": 7}, "row 1, field 'image': a path, base64 text"),
        ({"question": "x", "options": 7}, "row 1, field 'options'"),
        ({"question": "x", "id": "first"}, "row 1: the id 'first' is that of row 0 too"),
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
        with pytest.raises(UniDPOError, match="leads out of the image root"):
            read(path, tmp_path, image_root=str(root))


@pytest.mark.parametrize("name", ["", "missing.jsonl"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(UniDPOError, match=name or "input.path"):
        read_questions(InputOptions(name and str(tmp_path / name)), tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(UniDPOError, match="holds no questions"):
        read(write_jsonl(tmp_path / "a.jsonl"), tmp_path)
