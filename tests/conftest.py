"""What every test may ask for: the tiny checkpoint and the digits, made once per process."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(scope="session")
def tiny_qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2-VL checkpoint with the instruct template."""
    from uni_dpo.demo.tiny_model import write_tiny_qwen2_vl

    return write_tiny_qwen2_vl(tmp_path_factory.mktemp("models") / "tiny_qwen2_vl")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Scikit-learn's digits as image files: split → list of `Digit`."""
    from uni_dpo.demo.digits import write_digits
    from uni_dpo.demo.tiny_model import IMAGE_SIDE

    return write_digits(tmp_path_factory.mktemp("digits"), side=IMAGE_SIDE)
