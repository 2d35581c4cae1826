from collections.abc import Callable
from pathlib import Path

import pytest

UPSTREAMS_DATASETS = """{
  "identity": {
    "file_name": "identity.json"
  }
}
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def llamafactory(tmp_path: Path) -> Callable[[str], Path]:
    """Make a folder with the files that a LlamaFactory checkout is known by."""

    def make(version: str = "0.9.5") -> Path:
        root = tmp_path / "LlamaFactory"
        write(root / "src/llamafactory/extras/env.py", f'import os\n\nVERSION = "{version}"\n')
        write(root / "src/llamafactory/train/dpo/__init__.py", "from .workflow import run_dpo\n")
        write(root / "src/train.py", "")
        write(root / "data/dataset_info.json", UPSTREAMS_DATASETS)
        return root

    return make


@pytest.fixture
def vlmevalkit(tmp_path: Path) -> Path:
    """A folder with the files that a VLMEvalKit checkout is known by."""
    root = tmp_path / "VLMEvalKit"
    write(root / "vlmeval/__init__.py", "__version__ = '0.2rc1'\n")
    write(root / "vlmeval/vlm/qwen2_vl/__init__.py", "from .model import Qwen2VLChat\n")
    write(root / "run.py", "")
    return root
