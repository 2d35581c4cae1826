import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uni_dpo.errors import UniDPOError
from uni_dpo.overlay.checkout import datasets, entry_text, with_text, without_entry

FILE = Path("data/dataset_info.json")
ENTRY = {"file_name": "ours.json", "columns": {"prompt": "instruction"}}
ADDED = b""",
  "ours": {
    "file_name": "ours.json",
    "columns": {
      "prompt": "instruction"
    }
  }"""


def add(content: bytes) -> bytes:
    return with_text(content, entry_text(content, "ours", ENTRY))


def test_the_entry_stands_last_and_nothing_else_changes():
    content = b'{\n  "a": {"file_name":   "a.json"}\n}\n\n'
    assert add(content) == b'{\n  "a": {"file_name":   "a.json"}' + ADDED + b"\n}\n\n"


def test_an_empty_object_gets_no_comma():
    assert add(b"{\n}\n") == b"{" + ADDED[1:] + b"\n}\n"


def test_indentation_and_line_ends_are_those_of_the_file():
    changed = add(b'{\r\n\t"a": {}\r\n}')
    assert changed.startswith(b'{\r\n\t"a": {},\r\n\t"ours": {\r\n\t\t"file_name": "ours.json",\r\n')
    assert b"\n" not in changed.replace(b"\r\n", b"")


names = st.text(min_size=1, max_size=8).filter(lambda name: name != "ours")


@given(
    content=st.dictionaries(names, st.dictionaries(names, st.text() | st.integers(), max_size=3), max_size=4),
    indent=st.sampled_from([None, 1, 2, 4, "\t"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    tail=st.sampled_from(["", "\n", " \n\n"]),
    ascii_only=st.booleans(),
)
def test_adding_keeps_every_dataset_and_taking_out_restores_every_byte(content, indent, newline, tail, ascii_only):
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_only).replace("\n", newline) + tail
    before = text.encode()
    inserted = entry_text(before, "ours", ENTRY)
    after = with_text(before, inserted)
    assert json.loads(after) == {**content, "ours": ENTRY}
    assert without_entry(FILE, after, "ours", inserted) == before


def test_datasets_that_others_added_since_stay():
    before = b'{\n  "a": {}\n}\n'
    inserted = entry_text(before, "ours", ENTRY)
    theirs = with_text(with_text(before, inserted), b',\n  "theirs": {}')
    assert without_entry(FILE, theirs, "ours", inserted) == b'{\n  "a": {},\n  "theirs": {}\n}\n'


def test_an_entry_that_is_gone_already_is_no_fault():
    before = b'{\n  "a": {}\n}\n'
    assert without_entry(FILE, before, "ours", entry_text(before, "ours", ENTRY)) == before


def test_an_entry_that_says_something_else_by_now_stays():
    edited = b'{"ours": {"file_name": "mine.json"}}'
    assert without_entry(FILE, edited, "ours", ADDED) == edited


@pytest.mark.parametrize(
    ("edited", "left"),
    [
        (json.dumps({"a": {}, "ours": ENTRY, "ö": {}}).encode(), {"a": {}, "ö": {}}),
        (b"{" + ADDED[1:] + b',\n  "theirs": {}\n}', {"theirs": {}}),
    ],
    ids=["reformatted", "ours was first"],
)
def test_the_entry_is_found_by_its_meaning_where_its_text_is_gone(edited, left):
    text = ADDED if b'"a"' in edited else ADDED[1:]
    assert json.loads(without_entry(FILE, edited, "ours", text)) == left


@pytest.mark.parametrize(("content", "what"), [(b'{"a": ', "not valid JSON"), (b"[]", "found list")])
def test_a_broken_file_is_named(content, what):
    with pytest.raises(UniDPOError, match=rf"data/dataset_info\.json: .*{what}"):
        datasets(FILE, content)
