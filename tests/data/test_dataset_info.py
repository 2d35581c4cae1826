import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from uni_dpo.data.checks.preflight import preflight
from uni_dpo.data.dataset_info import SCORE_ROLES, Columns, Tags, load_dataset_info, read_entry, register_entry
from uni_dpo.data.faults import Fault, PreferenceDataError
from uni_dpo.data.pair import read_pair
from uni_dpo.data.register import detect_attributes, detect_entry, register_file


def write(folder, **info) -> None:
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_defaults_are_llamafactory_s(tmp_path) -> None:
    write(tmp_path, d={"file_name": "d.json"})
    entry = read_entry("d", tmp_path)
    assert (entry.path, entry.formatting, entry.ranking) == (tmp_path / "d.json", "alpaca", False)
    assert (entry.columns, entry.tags) == (Columns(), Tags())


def test_what_columns_or_tags_leave_out_is_not_used_but_our_scores_are(tmp_path) -> None:
    columns = {"prompt": "q", "score_chosen": "rating"}
    write(tmp_path, d={"file_name": "d.json", "columns": columns, "tags": {"role_tag": "role"}})
    entry = read_entry("d", tmp_path)
    assert (entry.columns.prompt, entry.columns.query, entry.columns.messages) == ("q", None, None)
    assert (entry.columns.score_chosen, entry.columns.score_rejected) == ("rating", "score_rejected")
    assert (entry.tags.role_tag, entry.tags.content_tag) == ("role", None)


def test_the_same_defaults_as_the_installed_llamafactory(tmp_path) -> None:
    from dataclasses import asdict

    from llamafactory.data.parser import get_dataset_list

    columns = {"messages": "conversations", "chosen": "better", "images": "pictures"}
    write(
        tmp_path,
        plain={"file_name": "a.json"},
        mapped={"file_name": "b.json", "columns": columns, "tags": {"role_tag": "role"}, "formatting": "sharegpt"},
        hub={"hf_hub_url": "someone/pairs", "ranking": True, "num_samples": 7},
    )
    for theirs in get_dataset_list(["plain", "mapped", "hub"], str(tmp_path)):
        ours = next(
            entry
            for entry in (read_entry(name, tmp_path) for name in ("plain", "mapped", "hub"))
            if theirs.dataset_name in (entry.elsewhere, entry.path and entry.path.name)
        )
        assert (ours.formatting, ours.ranking, ours.num_samples) == (
            theirs.formatting, theirs.ranking, theirs.num_samples,
        )  # fmt: skip
        for name, value in (asdict(ours.columns) | asdict(ours.tags)).items():
            assert name in (*SCORE_ROLES, "answers", "rejected_images") or getattr(theirs, name) == value, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds a list; an object of dataset entries belongs there"),
        ("{", "is not JSON"),
        ('{"d": 3}', "'d': holds a int"),
        ('{"d": {}}', "has no file_name"),
        ('{"d": {"file_name": "x", "columns": ["a"]}}', r"columns: \['a'\]"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message) -> None:
    (tmp_path / "dataset_info.json").write_text(text)
    with pytest.raises(PreferenceDataError, match=message):
        read_entry("d", tmp_path)
    with pytest.raises(PreferenceDataError, match="cannot be opened"):
        load_dataset_info(tmp_path / "none")


def test_registering_leaves_the_others_as_they_are(tmp_path) -> None:
    write(tmp_path, first={"file_name": "像.json", "unknown": {"key": [1, 2]}}, second={"hf_hub_url": "x/y"})
    before = load_dataset_info(tmp_path)
    register_entry("third", {"file_name": "c.json"}, tmp_path)
    after = load_dataset_info(tmp_path)
    assert list(after) == ["first", "second", "third"]
    assert {name: after[name] for name in before} == before


def test_a_file_is_registered_with_its_columns_and_passes_the_preflight(folder, good_row) -> None:
    row = good_row()
    row["prompt"], row["image"] = row.pop("instruction"), row.pop("images")
    row["chosen_rating"], row["rejected_rating"] = row.pop("score_chosen"), row.pop("score_rejected")
    (folder / "data" / "rated.jsonl").write_text(json.dumps(row))
    attributes = register_file("rated", folder / "data" / "rated.jsonl", folder / "data")
    assert attributes == {
        "file_name": "rated.jsonl",
        "ranking": True,
        "formatting": "alpaca",
        "columns": {
            "prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "score_chosen": "chosen_rating",
            "score_rejected": "rejected_rating", "images": "image",
        },
    }  # fmt: skip
    assert preflight(["rated"], folder / "data", folder).rows == 1
    with pytest.raises(PreferenceDataError, match="has a dataset 'rated'; choose another name"):
        register_file("rated", folder / "data" / "rated.jsonl", folder / "data")
    register_file("rated", folder / "data" / "rated.jsonl", folder / "data", replace=True)
    outside = register_file("copy", folder / "data" / "rated.jsonl", folder / "elsewhere")
    assert outside["file_name"] == str(folder / "data" / "rated.jsonl")


@pytest.mark.parametrize("style", [("from", "value", "human", "gpt"), ("role", "content", "user", "assistant")])
def test_messages_are_detected_in_both_styles(tmp_path, style) -> None:
    role, content, user, assistant = style
    row = {
        "messages" if role == "role" else "conversations": [{role: user, content: "q"}],
        "chosen": {role: assistant, content: "a"},
        "rejected": {role: assistant, content: "b"},
    }
    (tmp_path / "d.json").write_text(json.dumps([row]))
    entry = detect_entry(tmp_path / "d.json")
    assert entry.formatting == ("openai" if role == "role" else "sharegpt")
    faults: list[Fault] = []
    pair = read_pair(row, entry, faults, scores_required=False)
    assert (pair.instruction, pair.chosen, pair.rejected, faults) == ("q", "a", "b", [])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, r"its columns \(text\) hold no `chosen` and `rejected`.*--map chosen=COLUMN"),
        ({"chosen": "a", "rejected": "b"}, "hold no question"),
        ({"chosen": [{"role": "user", "content": "q"}], "rejected": []}, "holds a list of messages"),
        ({"chosen": ["a", "b"], "rejected": "c"}, r"holds \['a', 'b'\]; one text or one message"),
        ({"chosen": {"from": "gpt", "value": "a"}, "rejected": {}}, "no column of its"),
    ],
)
def test_what_is_not_pairs_is_refused(tmp_path, row, message) -> None:
    (tmp_path / "d.json").write_text(json.dumps([row]))
    with pytest.raises(PreferenceDataError, match=message):
        detect_attributes(tmp_path / "d.json")


def test_columns_that_only_later_rows_have_are_found(tmp_path, good_row) -> None:
    text = good_row(instruction="q", images=...)
    rows = [*[text] * 150, good_row(1), text | {"system": "Be kind.", "other": 1}]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    columns = detect_attributes(tmp_path / "d.json")["columns"]
    assert (columns["images"], columns["system"]) == ("images", "system")


def test_the_first_row_is_named_where_none_can_be_read(tmp_path) -> None:
    (tmp_path / "d.jsonl").write_text('{"chosen": "a", "chosen": "b"}\n{}{}\n')
    with pytest.raises(PreferenceDataError, match=r"row 0 \(line 1\), row: gives 'chosen' twice"):
        detect_attributes(tmp_path / "d.jsonl")


def test_a_broken_row_among_the_first_does_not_hide_the_layout(tmp_path, good_row) -> None:
    (tmp_path / "d.jsonl").write_text("{\n".replace("{", "{broken") + json.dumps(good_row()) + "\n")
    assert detect_attributes(tmp_path / "d.jsonl")["columns"]["prompt"] == "instruction"


def test_entries_that_are_written_at_once_all_stand(tmp_path: Path) -> None:
    code = "import sys; from uni_dpo.data.dataset_info import register_entry; " + (
        "[register_entry(f'{sys.argv[1]}-{at}', {'file_name': 'a.json'}, sys.argv[2]) for at in range(20)]"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(at), str(tmp_path)]) for at in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert len(json.loads((tmp_path / "dataset_info.json").read_text())) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["dataset_info.json"]


@pytest.mark.parametrize("name", ["a,b", " a", "a ", "", " "])
def test_a_name_that_no_configuration_can_name_is_refused(tmp_path, name) -> None:
    (tmp_path / "d.json").write_text(json.dumps([{"instruction": "q", "chosen": "a", "rejected": "b"}]))
    with pytest.raises(PreferenceDataError, match="cannot be a dataset's name"):
        register_file(name, tmp_path / "d.json", tmp_path)
    assert not (tmp_path / "dataset_info.json").exists()


def test_a_file_whose_name_is_not_utf_8_is_refused(tmp_path) -> None:
    file = tmp_path / os.fsdecode(b"p\xff.json")
    file.write_text(json.dumps([{"instruction": "q", "chosen": "a", "rejected": "b"}]))
    with pytest.raises(PreferenceDataError, match=r"dataset_info\.json is UTF-8, and a name is not; rename it"):
        register_file("n", file, tmp_path)
