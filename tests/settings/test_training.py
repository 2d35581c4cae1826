"""What a training configuration says wrong is said without torch, transformers or LlamaFactory."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.settings import training
from uni_dpo.settings.training import check_early, help_lines, known_settings


def test_the_names_are_those_of_the_imported_classes() -> None:
    import dataclasses

    from uni_dpo.llamafactory import register, seams

    register()
    imported = {field.name for group in seams.train_arguments() for field in dataclasses.fields(group) if field.init}
    assert imported <= {setting.name for setting in known_settings()}


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom uni_dpo.errors import UniDPOError\n"
        "from uni_dpo.settings.training import check_early, help_lines\nhelp_lines()\n"
        "try: check_early({'lerning_rate': 1})\nexcept UniDPOError as error: print(error)\n"
        "assert not {'torch', 'transformers', 'llamafactory', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "lerning_rate: unknown setting; did you mean 'learning_rate'?\n"


def test_help_shows_ours_first_with_their_defaults() -> None:
    lines = help_lines()
    assert "  uni_dpo_tau_good (default 2.5)" in lines[:20]
    assert any("model_name_or_path" in line for line in lines)


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, and no SwanLab."""
    monkeypatch.setattr(training, "has_accelerator", lambda: False)
    find = importlib.util.find_spec
    monkeypatch.setattr(training, "find_spec", lambda name: None if name == "swanlab" else find(name))


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bf16": True}, "bf16: true needs a GPU"),
        (["--bf16", "true"], "bf16: true needs a GPU"),
        (["--bf16"], "bf16: true needs a GPU"),
        ({"fp16": True, "use_cpu": True}, "fp16: true needs a GPU"),
        ({"pure_bf16": True}, "pure_bf16: true needs a GPU"),
        ({"deepspeed": "nowhere.json"}, "deepspeed: there is no file 'nowhere.json'"),
        ({"report_to": "swanlab"}, "report_to: swanlab needs the package swanlab"),
        ({"report_to": ["swanlab"]}, "report_to: swanlab needs the package swanlab"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch"},
            "eval_strategy is 'epoch' and save_strategy is 'steps'; set both to the same",
        ),
        (["--no_such_flag", "3"], "no_such_flag: unknown setting"),
    ],
)
def test_what_will_not_work_is_one_line(given: Any, message: str) -> None:
    with pytest.raises(UniDPOError) as refused:
        check_early(given)
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"bf16": True, "use_cpu": True},
        {"bf16": False},
        {"report_to": "none"},
        {"deepspeed": '{"zero_optimization": {"stage": 2}}'},
        {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
        {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "best"},
        ["--pref_loss", "uni_dpo", "--dpo_average_log_prob", "--learning_rate", "1e-5"],
    ],
)
def test_what_works_passes(given: Any) -> None:
    check_early(given)


def test_version_1_does_not_know_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_V1", "1")
    with pytest.raises(UniDPOError, match="USE_V1=1 starts LlamaFactory's version 1, which does not know"):
        check_early({"pref_loss": "uni_dpo"})
    check_early({"pref_loss": "sigmoid"})


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UniDPOError, match=r"output_dir: .*taken is a file; name a folder"):
        check_early({"output_dir": str(tmp_path / "taken")})
    with pytest.raises(UniDPOError, match=r"output_dir: .* cannot be written"):
        check_early({"output_dir": str(tmp_path / "taken" / "below")})
    check_early({"output_dir": str(tmp_path / "new" / "deeper")})
