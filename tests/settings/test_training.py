"""What a training configuration says wrong is said without torch, transformers or LlamaFactory."""

import ast
import dataclasses
import importlib.util
import re
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from llamafactory.hparams import parser

from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory import launch, register
from uni_dpo.settings import machine
from uni_dpo.settings.options import NotNegative, Share, parts_of
from uni_dpo.settings.sources import RANGES, kind_of, known_settings, known_templates
from uni_dpo.settings.training import check_early, check_trl, generation_warning, help_lines

FLAGS = ["--model_name_or_path", "m", "--output_dir", "o"]


def flat(kind: Any) -> set[Any]:
    """The parts of a type, with the values of its enumerations and literals as texts."""
    found: set[Any] = set()
    for part in parts_of(kind)[0]:
        if isinstance(part, type) and issubclass(part, Enum):
            found |= {str(member.value) for member in part}
        elif get_origin(part) is Literal:
            found |= {str(value) for value in get_args(part)}
        else:
            found.add(get_origin(part) or part)
    return found


def test_names_and_types_are_those_of_the_imported_classes() -> None:
    register()
    known = {setting.name: setting.kind for setting in known_settings()}
    for group in parser._TRAIN_ARGS:
        fields = {field.name for field in dataclasses.fields(group) if field.init}
        assert fields <= known.keys()
        for name, kind in get_type_hints(group).items():
            if name in fields and name != "pref_loss" and Any not in flat(known[name]):  # also a mapping
                assert flat(known[name]) == flat(kind), name
    assert sum(Any in flat(kind) for kind in known.values()) <= 3


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("str | None", str | None),
        ("'int'", int),
        ("Optional[Union[str, bool]]", str | bool | None),
        ("Annotated[float, Ge(0), Le(1)]", Share),
        ("NotNegative | None", NotNegative | None),
        ("Kind", Literal["a", "b"]),
        ("Unknown", Any),
        *((source, Any) for source in ("torch.dtype", "Optional[Unknown[str]]", "Optional['Unknown']", "print()")),
        *((source, Any) for source in ("Optional['two words']", "NAMES['a'][0]", "('a',)[1]", "{'a': 1}['b']")),
        *((source, Any) for source in ("[X for x in ('a',)][0]", "[10 ** 10 ** 10][0]")),
    ],
)
def test_a_type_is_read_from_its_source(source: str, kind: Any) -> None:
    assert kind_of(ast.parse(source, mode="eval").body, {"Kind": Literal["a", "b"]}) == kind


def test_templates_are_those_of_the_imported_module() -> None:
    from llamafactory.data import TEMPLATES

    assert known_templates() == {name: one.mm_plugin.image_token is not None for name, one in TEMPLATES.items()}


def test_every_range_is_of_a_setting_and_holds_its_default() -> None:
    known = {setting.name: setting for setting in known_settings()}
    assert RANGES.keys() <= known.keys()
    defaults = {
        name: ast.literal_eval(known[name].default) for name in RANGES if re.fullmatch(r"[\d.e-]+", known[name].default)
    }
    assert len(defaults) > 20
    check_early({name: value for name, value in defaults.items() if value is not None})


def test_trls_settings_are_checked_without_trl(tmp_path: Path) -> None:
    config = tmp_path / "dpo.yaml"
    config.write_text(
        "learning_rate: -1\nloss_tpe: sigmoid\nenv: {A: b}\nuni_dpo_qual_eta: x\n"
        "save_strategy: no\nloss_type: [uni_dpo, sft]\nloss_weights: [1]\n"
    )
    with pytest.raises(UniDPOError) as refused:
        check_trl([str(config), "score_chosen_colum=a"])
    assert str(refused.value).splitlines() == [
        f"{config}:2: loss_tpe: unknown setting; did you mean 'loss_type'?",
        "command line: score_chosen_colum: unknown setting; did you mean 'score_chosen_column'?",
        f"{config}:1: learning_rate: -1 is out of range; it can be 0 or more",
        f"{config}:4: uni_dpo_qual_eta: 'x' is not a finite number",
        f'{config}:5: save_strategy: YAML reads a bare no as false; write "no" in quotation marks',
        f"{config}:7: loss_weights: one weight for each of uni_dpo, sft; not [1]",
    ]
    with pytest.raises(UniDPOError, match=r"^lerning_rate: unknown setting"):
        check_trl(["--lerning_rate", "1"])
    check_trl(["--help"])


@pytest.mark.parametrize(
    ("given", "cut"),
    [
        ({"stage": "dpo", "max_length": 4096}, "2048"),
        ({"max_length": 4096, "cutoff_len": 1024}, "1024"),
        (["--stage", "dpo", "--max_length", "4096", "--cutoff-len", "512"], "512"),
        ({"stage": "dpo", "cutoff_len": 4096}, None),
        ({"stage": "ppo", "max_length": 4096}, None),
        ({"stage": "sft", "max_length": 4096, "predict_with_generate": True}, None),
        (["--do_predict", "--max_length", "4096"], None),
    ],
)
def test_a_length_that_bounds_generation_is_said_not_to_bound_rows(given: Any, cut: str | None) -> None:
    words = "max_length bounds generated answers, and this training generates none; rows are cut at cutoff_len: "
    assert generation_warning(given) == (f"{words}{cut}" if cut else "")


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
    monkeypatch.setattr(machine, "has_accelerator", lambda: False)
    find = importlib.util.find_spec
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name == "swanlab" else find(name))


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bf16": True}, "bf16: true needs a GPU"),
        (["--bf16", "true"], "bf16: true needs a GPU"),
        (["--bf16"], "bf16: true needs a GPU"),
        ({"fp16": True, "use_cpu": True}, "fp16: true needs a GPU"),
        ({"pure_bf16": True}, "pure_bf16: true needs a GPU"),
        ({"deepspeed": __file__}, "is not JSON"),
        ({"deepspeed": "nowhere.json"}, "deepspeed: there is no file 'nowhere.json'"),
        ({"report_to": "swanlab"}, "report_to: swanlab needs the package swanlab"),
        ({"report_to": ["swanlab"]}, "report_to: swanlab needs the package swanlab"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch"},
            "eval_strategy is 'epoch' and save_strategy is 'steps'; set both to the same",
        ),
        (["--no_such_flag", "3"], "no_such_flag: unknown setting"),
        ({"ref_model": "/nowhere"}, "ref_model: there is no folder /nowhere"),
        ({"adapter_name_or_path": "saves/a/lora"}, "adapter_name_or_path: there is no folder saves/a/lora"),
        ({"resume_from_checkpoint": "./nowhere"}, "resume_from_checkpoint: there is no folder ./nowhere"),
        ({"resume_from_checkpoint": "checkpoint-9"}, "resume_from_checkpoint: there is no folder checkpoint-9"),
        ({"resume_from_checkpoint": True, "output_dir": "/o"}, "resume_from_checkpoint: there is no checkpoint in /o;"),
        ({"resume_from_checkpoint": True}, "resume_from_checkpoint: there is no checkpoint in trainer_output;"),
        ({"tf32": True, "use_cpu": True}, "tf32: true needs a GPU"),
        ({"fsdp": "full_shard"}, "fsdp: shards a model over GPUs, and this machine shows none"),
        ({"resume_from_checkpoint": "/"}, "resume_from_checkpoint: there is no trainer_state.json in /"),
        ({"report_to": "wandb,tensorboard"}, "report_to: 'wandb,tensorboard' is no list; write [wandb, tensorboard]"),
        ({"train_type": "lora"}, "train_type: unknown setting; here it is called 'finetuning_type'"),
        ({"model": "m"}, "model: unknown setting; here it is called 'model_name_or_path'"),
        ({"beta": 0.1}, "beta: unknown setting; here it is called 'pref_beta'"),
        ({"max_pixels": 9}, "max_pixels: unknown setting; here it is called 'image_max_pixels'"),
        ({"MAX_PIXELS": 9}, "MAX_PIXELS: unknown setting; here it is called 'image_max_pixels'"),
        ({"stage": "dpo", "pref_loss": "uni_dpo", "output_dir": "o"}, "do_train: is not set, so that nothing would be"),
        ({"learning_rat": 9}, "learning_rat: unknown setting; did you mean 'learning_rate'?"),
        (
            {"pref_loss": "uni_dpo", "metric_for_best_model": "eval_accuracy"},
            "metric_for_best_model: 'eval_accuracy' is no metric of an evaluation; name eval_loss",
        ),
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


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    whole, adapter = tmp_path / "whole", tmp_path / "adapter"
    for folder in (whole, adapter):
        folder.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(UniDPOError, match=r"^adapter_name_or_path: there is no adapter_config.json in .*whole; name"):
        check_early({"adapter_name_or_path": f"{adapter},{whole}"})
    check_early({"adapter_name_or_path": str(adapter), "reward_model": "http://localhost:1/v1/score"})
    check_early({"adapter_name_or_path": str(whole), "adapter_folder": "sub"})


@pytest.mark.parametrize("metric", ["eval_loss", "loss", "eval_held_out_loss", "eval_rewards/accuracies"])
def test_metrics_that_an_evaluation_gives_pass(metric: str) -> None:
    check_early({"pref_loss": "uni_dpo", "metric_for_best_model": metric})


@pytest.mark.parametrize(
    "given",
    [{"max_step": 2, "dataset": "a", "uni_dpo_perf_gama": 1}, [*FLAGS, "--max_stepps", "2", "--uni_dpo_perf_gama=1"]],
    ids=["file", "flags"],
)
def test_slips_of_the_pen_are_named_with_what_was_meant(given: Any) -> None:
    with pytest.raises(UniDPOError) as caught:
        check_early(given)
    first, second = str(caught.value).splitlines()
    assert first.startswith("max_step")
    assert first.endswith(": unknown setting; did you mean 'max_steps'?")
    assert second == "uni_dpo_perf_gama: unknown setting; did you mean 'uni_dpo_perf_gamma'?"


def test_what_llamafactory_takes_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of every group; flags may be cut short; and a switch lets anything through."""
    check_early({"trust_remote_code": True, "cutoff_len": 1, "max_steps": 1, "uni_dpo_nll_lambda": 0, "top_p": 1})
    check_early([*FLAGS, "--max_step", "2"])
    monkeypatch.setenv("ALLOW_EXTRA_ARGS", "1")
    check_early({"max_step": 2})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pref_loss": "uni_dop"}, "pref_loss: 'uni_dop' is no preference loss; did you mean 'uni_dpo'?"),
        ({"save_strategy": "n"}, "save_strategy: 'n' is none of its values; did you mean 'no'?"),
        ({"pair_forward": "x"}, "pair_forward: 'x' is none of its values; known: auto, shared_prefix, ordinary"),
        ({"learning_rate": "abc"}, "learning_rate: 'abc' is not a finite number"),
        ({"learning_rate": float("nan")}, "learning_rate: nan is not a finite number"),
        ({"uni_dpo_qual_eta": -1}, "uni_dpo_qual_eta: -1 is out of range; it can be 0 or more"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: 0 is out of range; it can be 1 or more"),
        ({"lora_rank": 1.5}, "lora_rank: a whole number is expected, not 1.5"),
        ({"interleave_probs": 0.5}, "interleave_probs: a text is expected, not 0.5; write it in quotation marks"),
        ({"do_train": "false"}, "do_train: true or false is expected, not 'false'"),
        ({"learning_rate": [1]}, "learning_rate: [1] is not a finite number"),
        (["--warmup_ratio", "2"], "warmup_ratio: 2.0 is out of range; it can be 0 or more and 1 at most"),
        ({"model_name_or_path": "./gone"}, "model_name_or_path: there is no folder ./gone"),
        ({"pref_beta": float("inf")}, "pref_beta: inf is not a finite number"),
        ({"uni_dpo_tau_ref": "nan"}, "uni_dpo_tau_ref: 'nan' is not a finite number"),
        ({"template": "qwen2_v"}, "template: LlamaFactory has none called 'qwen2_v'; did you mean 'qwen2_vl'?"),
    ],
    ids=str,
)
def test_values_that_a_setting_cannot_have_are_named(given: Any, message: str) -> None:
    with pytest.raises(UniDPOError) as caught:
        check_early(given)
    assert str(caught.value).startswith(message)


def test_a_flag_of_the_published_launch_line_needs_no_value() -> None:
    check_early([*FLAGS, "--pref_loss", "uni_dpo", "--dpo_average_log_prob", "--max_steps", "1"])


def test_every_recipe_has_values_that_its_settings_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_accelerator", lambda: True)
    monkeypatch.setattr(machine, "find_spec", lambda name: True)
    paths = Path(__file__).parents[2].glob("examples/**/*.yaml")
    recipes = [path for path in paths if path.read_text().startswith("stage:") or "\nstage:" in path.read_text()]
    assert len(recipes) > 8
    for recipe in recipes:
        changed = {"learning_rate": "1e-6", "fsdp": "full_shard auto_wrap", "model_name_or_path": "m"}
        check_early(launch.read_arguments([str(recipe)]) | changed)


def test_the_command_checks_first(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("model_name_or_path: no-such-model\noutput_dir: o\n")
    with pytest.raises(UniDPOError, match=r"^command line: max_step: unknown setting"):
        launch.train([str(config), "max_step=2"])


def test_a_template_with_images_needs_a_processor(tmp_path: Path, tiny_qwen2_vl: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    text = {"model_name_or_path": str(tmp_path), "stage": "dpo"}
    with pytest.raises(
        UniDPOError, match=r"^template: qwen2_vl reads images, and .* no image processor.*`template: qwen`"
    ):
        check_early({**text, "template": "qwen2_vl"})
    with pytest.raises(UniDPOError, match="template: llava"):
        check_early([*FLAGS, "--model_name_or_path", str(tmp_path), "--template", "llava"])
    check_early({**text, "template": "qwen"})
    check_early({**text, "template": "qwen2_vl", "stage": "pt"})
    check_early({**text, "template": "qwen2_vl", "model_name_or_path": "a/name-on-the-hub"})
    check_early({**text, "template": "qwen2_vl", "model_name_or_path": str(tiny_qwen2_vl)})
