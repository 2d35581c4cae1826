"""Registration: all seams or none, once, and a clear word where it cannot be."""

import importlib

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory import register, seams


def standing() -> list[object]:
    return [getattr(importlib.import_module(module), name) for module, name, _ in seams.SEAMS]


def test_every_seam_is_ours_and_a_second_call_changes_nothing() -> None:
    register()
    first = standing()
    assert all(item.__module__.startswith("uni_dpo.llamafactory") for item in first)
    register()
    assert standing() == first


def test_the_argument_lists_hold_our_arguments_once() -> None:
    register()
    parser = importlib.import_module("llamafactory.hparams.parser")
    for name in seams.ARGUMENT_LISTS:
        names = [cls.__name__ for cls in getattr(parser, name)]
        assert names.count("UniDPOFinetuningArguments") == 1
        assert "FinetuningArguments" not in names


def test_a_missing_seam_is_named_with_versions_and_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    loader = importlib.import_module("llamafactory.data.loader")
    parser = importlib.import_module("llamafactory.data.parser")
    monkeypatch.delattr(loader, "align_dataset")
    monkeypatch.setattr(parser, "DatasetAttr", "untouched")
    with pytest.raises(UniDPOError, match=r"llamafactory\.data\.loader\.align_dataset is missing") as caught:
        register()
    assert "0.9.4 to 0.9.5" in str(caught.value)
    assert parser.DatasetAttr == "untouched"


@pytest.mark.parametrize(
    ("version", "fits"), [("0.9.3", False), ("0.9.5.dev0", True), ("0.9.6", False), ("1.0", False)]
)
def test_versions(monkeypatch: pytest.MonkeyPatch, version: str, fits: bool) -> None:
    """The published recipe's commit calls itself 0.9.5.dev0."""
    env = importlib.import_module("llamafactory.extras.env")
    monkeypatch.setattr(env, "VERSION", version)
    if fits:
        register()
    else:
        with pytest.raises(UniDPOError, match=f"LlamaFactory {version} cannot be used"):
            register()
