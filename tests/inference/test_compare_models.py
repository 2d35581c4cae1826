"""Which two models are meant, told from files alone."""

from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.inference.compare import Models, Prompt, compare
from uni_dpo.models.backends import Sampling


def test_an_adapter_names_its_base(original: Path, adapter: Path) -> None:
    assert Models.find(str(adapter)) == Models(str(original), str(adapter))
    assert Models.find(str(adapter), "another").original == "another"


def test_a_whole_model_needs_the_one_before(original: Path, merged: Path) -> None:
    assert Models.find(str(merged), str(original)) == Models(str(original), str(merged))
    with pytest.raises(UniDPOError, match="--original"):
        Models.find(str(merged))


@pytest.mark.parametrize("content", ["{}", "not json", "[]"])
def test_an_adapter_without_a_base_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UniDPOError, match=r"adapter_config\.json"):
        Models.find(str(tmp_path))


def test_a_trained_model_that_is_not_there_is_named_before_the_original_answers(original: Path, tmp_path: Path) -> None:
    models = Models.find(str(tmp_path / "gone"), str(original))
    with pytest.raises(UniDPOError, match="gone"):
        compare([Prompt(1, "Is rain good?")], models, tmp_path, Sampling(max_tokens=1, temperature=0.0))
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_model_is_named(tiny_qwen2_vl: Path, adapter: Path, tmp_path: Path) -> None:
    models = Models.find(str(adapter), str(tiny_qwen2_vl))
    with pytest.raises(UniDPOError, match="does not fit"):
        compare([Prompt(1, "Is rain good?")], models, tmp_path, Sampling(max_tokens=1, temperature=0.0))
