"""Registration: all seams or none, once, and a clear word where it cannot be."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_any_checkout_that_is_named_trains(config: Any, train: Any, tmp_path: Path) -> None:
    """The checkout's own training with our loss takes the steps of the installed LlamaFactory's; its SFT works."""
    checkout = os.environ.get("UNI_DPO_LLAMAFACTORY")
    if not checkout:
        pytest.skip("set UNI_DPO_LLAMAFACTORY to the folder of a LlamaFactory checkout to try it")
    source = str(Path(checkout) / "src")
    environment = os.environ | {"PYTHONPATH": source, "DISABLE_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
    described = config(output_dir=str(tmp_path / "theirs"))
    (tmp_path / "run.json").write_text(json.dumps(described))
    command = [sys.executable, "-m", "uni_dpo.llamafactory.launch", str(tmp_path / "run.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads((tmp_path / "theirs" / "trainer_state.json").read_text())["log_history"]
    ours = train()
    for name in ("loss", "grad_norm", "uni_dpo/w_perf"):
        assert [line[name] for line in theirs if "loss" in line] == pytest.approx(
            [line[name] for line in ours if "loss" in line], rel=1e-3
        )
