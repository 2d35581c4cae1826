"""Importing VLMEvalKit leaves the process as it was, and never mixes two of them."""

import ssl
from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.vlmeval.kit import data_root, import_kit


def test_gradients_and_certificates_stay_on(kit: str) -> None:
    import torch

    assert kit.startswith("vlmeval ")
    assert torch.is_grad_enabled()
    assert ssl._create_default_https_context is ssl.create_default_context


def test_a_second_vlmevalkit_is_refused(kit: str, tmp_path: Path) -> None:
    with pytest.raises(UniDPOError, match="is not a VLMEvalKit checkout"):
        import_kit(tmp_path)
    (tmp_path / "vlmeval").mkdir()
    (tmp_path / "vlmeval" / "__init__.py").touch()
    with pytest.raises(UniDPOError, match=r"already imported from .* needs a process of its own"):
        import_kit(tmp_path)


def test_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LMUData", raising=False)
    assert data_root() == Path.home() / "LMUData"
    monkeypatch.setenv("LMUData", str(tmp_path))
    assert data_root() == tmp_path


def test_a_library_that_vlmevalkit_lacks_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from uni_dpo.vlmeval import kit

    def lacking(name: str) -> object:
        raise ModuleNotFoundError("No module named 'rouge_score'", name="rouge_score")

    monkeypatch.setattr(kit.importlib, "import_module", lacking)
    with pytest.raises(UniDPOError, match=r"'?rouge_score'?, which is not installed: pip install rouge_score$"):
        import_kit()
