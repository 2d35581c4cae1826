"""A folder of small images and good rows that tests break one at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The media folder: holds `images/`, which rows name, and `data/`, where datasets are registered."""
    (tmp_path / "data").mkdir()
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (40, 30), "red").save(images / "red.png")
    Image.linear_gradient("L").save(images / "grey.jpg")
    (images / "empty.png").touch()
    (images / "drawing.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (images / "cut.jpg").write_bytes((images / "grey.jpg").read_bytes()[:600])
    Image.new("1", (12_500, 8_000)).save(images / "bomb.png")
    return tmp_path


@pytest.fixture
def good_row() -> Callable[..., dict[str, Any]]:
    """Makes a faultless row; keyword arguments replace columns, and `...` as a value removes one."""

    def make(number: int = 0, /, **changes: Any) -> dict[str, Any]:
        row = {
            "id": f"r{number}",
            "instruction": f"<image>What is in picture {number}?",
            "chosen": f"A red area, as in picture {number}.",
            "rejected": "A dog.",
            "score_chosen": 4.5,
            "score_rejected": 1.0 + number % 3,
            "images": ["images/red.png"],
        }
        return {key: value for key, value in (row | changes).items() if value is not ...}

    return make


@pytest.fixture
def register(folder: Path) -> Callable[..., str]:
    """Writes rows to a file and its entry into `dataset_info.json`; returns the dataset's name."""

    def add(name: str, rows: list[dict[str, Any]] | None, /, **entry: Any) -> str:
        path = folder / "data" / entry.setdefault("file_name", f"{name}.json")
        if rows is not None:
            path.write_text(json.dumps(rows))
        columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected", "images": "images"}
        info = folder / "data" / "dataset_info.json"
        known = json.loads(info.read_text()) if info.exists() else {}
        known[name] = {"ranking": True, "columns": columns} | entry
        info.write_text(json.dumps(known))
        return name

    return add
