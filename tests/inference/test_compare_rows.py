"""Prompts in the file's order, under the file's ids, and every fault by its row."""

import json
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.inference.compare import Prompt, read_prompts


def written(folder: Path, rows: list[Any]) -> Path:
    (folder / "prompts.json").write_text(json.dumps(rows))
    return folder / "prompts.json"


def test_ids_and_order_are_the_files(prompts: Path) -> None:
    assert [prompt.id for prompt in read_prompts(prompts)] == [7, 2, 10]


def test_rows_without_ids_are_numbered(tmp_path: Path) -> None:
    found = read_prompts(written(tmp_path, [{"prompt": "a"}, {"prompt": "b"}]))
    assert found == [Prompt(1, "a"), Prompt(2, "b")]


def test_a_row_may_have_a_system_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "system": "Be brief."}, {"prompt": "b", "system": ""}]
    assert read_prompts(written(tmp_path, rows)) == [Prompt(1, "a", (), "Be brief."), Prompt(2, "b")]
    with pytest.raises(UniDPOError, match="field 'system': 3; a text"):
        read_prompts(written(tmp_path, [{"prompt": "a", "system": 3}]))


def test_images_lie_beside_the_file(tmp_path: Path, digits: dict[str, list[Any]]) -> None:
    (tmp_path / "a.png").write_bytes(Path(digits["preference"][0].image).read_bytes())
    (found,) = read_prompts(written(tmp_path, [{"id": "x", "prompt": "<image>What?", "images": ["a.png"]}]))
    assert found == Prompt("x", "What?", (str(tmp_path / "a.png"),))
    (found,) = read_prompts(written(tmp_path, [{"prompt": "<video>What?", "videos": [["a.png"]]}]))
    assert found == Prompt(1, "What?", videos=((str(tmp_path / "a.png"),),))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"}], "row 1 (line 1), id: '1' is also that of row 0"),
        ([{"id": 1, "prompt": "a"}, {"prompt": "b"}], "row 1 (line 1), id: None"),
        ([{"id": 1.5, "prompt": "a"}], "row 0 (line 1), id: 1.5"),
        ([{"id": 1, "prompt": " "}], "field 'question': a text is expected, not ' '"),
        ([{"id": 1}], "row 0 (line 1), field 'question': a text is expected"),
        ([{"id": 1, "prompt": "a", "images": ["no.png"]}], "row 0 (line 1), field 'images': no file no.png"),
        ([{"id": 1, "prompt": "a", "images": [3]}], "row 0 (line 1), field 'images': 3; a path"),
        ([], "holds no prompts"),
    ],
)
def test_faults_are_named(tmp_path: Path, rows: list[Any], words: str) -> None:
    with pytest.raises(UniDPOError) as raised:
        read_prompts(written(tmp_path, rows))
    assert words in str(raised.value)


def test_no_image_leaves_the_root(tmp_path: Path, digits: dict[str, list[Any]]) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "a.png").write_bytes(Path(digits["preference"][0].image).read_bytes())
    file = written(tmp_path, [{"id": 1, "prompt": "a", "images": ["../a.png"]}])
    with pytest.raises(UniDPOError, match="leaves"):
        read_prompts(file, image_root=tmp_path / "root")
