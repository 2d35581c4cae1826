"""Registration: all seams or none, once, and a clear word where it cannot be."""

import importlib
import sys

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory import register, seams


def standing() -> list[object]:
    return [getattr(importlib.import_module(module), name) for module, name, _ in seams.SEAMS]


def test_every_seam_is_ours_and_a_second_call_changes_nothing() -> None:
    register()
    first = standing()
    assert all(item.__module__.startswith("uni_dpo.") for item in first)
    register()
    assert standing() == first


def test_a_hook_that_wraps_ours_is_not_called_by_ours(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    register()
    monkeypatch.setattr(sys, "excepthook", lambda *error: seams._excepthook(*error))  # as Ray's does
    register()
    error = ValueError("of a bug")
    sys.excepthook(ValueError, error, None)
    assert "ValueError: of a bug" in capsys.readouterr().err


def test_the_argument_lists_hold_our_arguments_once() -> None:
    register()
    parser = importlib.import_module("llamafactory.hparams.parser")
    for name in seams.ARGUMENT_LISTS:
        names = [cls.__name__ for cls in getattr(parser, name)]
        assert names.count("UniDPOFinetuningArguments") == 1
        assert "FinetuningArguments" not in names


def test_a_missing_seam_leaves_llamafactory_alone_and_refuses_only_uni_dpo(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    loader = importlib.import_module("llamafactory.data.loader")
    data = importlib.import_module("llamafactory.data.parser")
    parser = importlib.import_module("llamafactory.hparams.parser")
    monkeypatch.setattr(parser, "read_args", parser.read_args)  # put back at the end
    monkeypatch.setattr(seams, "_fault", None)
    monkeypatch.delattr(loader, "align_dataset")
    monkeypatch.setattr(data, "DatasetAttr", "untouched")
    register()
    assert data.DatasetAttr == "untouched"
    assert parser.read_args({"stage": "sft"}) == {"stage": "sft"}
    assert parser.read_args(["--pref_loss", "sigmoid"]) == ["--pref_loss", "sigmoid"]
    for given in ({"pref_loss": "uni_dpo"}, ["--pref_loss", "uni_dpo"], ["--pref_loss=uni_dpo"]):
        with pytest.raises(UniDPOError, match=r"it has no llamafactory\.data\.loader\.align_dataset\. ") as caught:
            parser.read_args(given)
        assert "git checkout v0.9.5" in str(caught.value)


@pytest.mark.parametrize(
    ("version", "tested"),
    [
        ("0.9.3", False),
        ("0.9.4.dev0", False),
        ("0.9.4", True),
        ("0.9.5.dev0", True),
        ("0.9.5rc1", True),
        ("0.9.5.post1", False),
        ("0.9.6.dev0", False),
        ("0.10", False),
        ("nightly", False),
    ],
)
def test_any_version_with_the_seams_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: str, tested: bool
) -> None:
    """The published recipe's commit calls itself 0.9.5.dev0."""
    env = importlib.import_module("llamafactory.extras.env")
    monkeypatch.setattr(env, "VERSION", version)
    register()
    assert (f"LlamaFactory {version} is not among the tested ones" in capsys.readouterr().err) == (not tested)
