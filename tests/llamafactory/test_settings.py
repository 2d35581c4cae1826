"""Faults of a run's settings that are seen before LlamaFactory acts on them."""

from pathlib import Path
from typing import Any

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory import launch, register
from uni_dpo.llamafactory.settings import check_settings

FLAGS = ["--model_name_or_path", "m", "--output_dir", "o"]


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


@pytest.mark.parametrize(
    "given",
    [{"max_step": 2, "dataset": "a", "uni_dpo_perf_gama": 1}, [*FLAGS, "--max_stepps", "2", "--uni_dpo_perf_gama=1"]],
    ids=["file", "flags"],
)
def test_slips_of_the_pen_are_named_with_what_was_meant(given: Any) -> None:
    with pytest.raises(UniDPOError) as caught:
        check_settings(given)
    first, second = str(caught.value).splitlines()
    assert first.startswith("max_step")
    assert first.endswith(": unknown setting; did you mean 'max_steps'?")
    assert second == "uni_dpo_perf_gama: unknown setting; did you mean 'uni_dpo_perf_gamma'?"


def test_what_llamafactory_takes_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of every group; flags may be cut short; and a switch lets anything through."""
    check_settings({"trust_remote_code": True, "cutoff_len": 1, "max_steps": 1, "uni_dpo_nll_lambda": 0, "top_p": 1})
    check_settings([*FLAGS, "--max_step", "2"])
    monkeypatch.setenv("ALLOW_EXTRA_ARGS", "1")
    check_settings({"max_step": 2})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pref_loss": "uni_dop"}, "pref_loss: 'uni_dop' is none of its values; did you mean 'uni_dpo'?"),
        ({"save_strategy": "n"}, "save_strategy: 'n' is none of its values; did you mean 'no'?"),
        ({"pair_forward": "x"}, "pair_forward: 'x' is none of its values; known: auto, shared_prefix, ordinary"),
        ({"learning_rate": "abc"}, "learning_rate: 'abc' is not a finite number"),
        ({"learning_rate": float("nan")}, "learning_rate: nan is not a finite number"),
        ({"pref_beta": float("inf")}, "pref_beta: inf is not a finite number"),
        ({"uni_dpo_tau_ref": "nan"}, "uni_dpo_tau_ref: 'nan' is not a finite number"),
        ({"template": "qwen2_v"}, "template: LlamaFactory has none called 'qwen2_v'; did you mean 'qwen2_vl'?"),
    ],
    ids=str,
)
def test_values_that_a_setting_cannot_have_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UniDPOError) as caught:
        check_settings(given)
    assert str(caught.value).startswith(message)


def test_a_flag_of_the_published_launch_line_needs_no_value() -> None:
    check_settings([*FLAGS, "--pref_loss", "uni_dpo", "--dpo_average_log_prob", "--max_steps", "1"])


def test_every_recipe_has_values_that_its_settings_take() -> None:
    recipes = [path for path in Path(__file__).parents[2].glob("examples/*/*.yaml") if "stage:" in path.read_text()]
    assert len(recipes) > 8
    for recipe in recipes:
        check_settings(
            {**launch.read_arguments([str(recipe)]), "learning_rate": "1e-6", "fsdp": "full_shard auto_wrap"}
        )


def test_it_is_the_command_that_looks(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("model_name_or_path: no-such-model\noutput_dir: o\n")
    with pytest.raises(UniDPOError, match=r"^max_step: unknown setting"):
        launch.train([str(config), "max_step=2"])


def test_a_template_with_images_needs_a_processor(tmp_path: Path, tiny_qwen2_vl: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    text = {"model_name_or_path": str(tmp_path), "stage": "dpo"}
    with pytest.raises(
        UniDPOError, match=r"^template: qwen2_vl reads images, and .* no image processor.*`template: qwen`"
    ):
        check_settings({**text, "template": "qwen2_vl"})
    with pytest.raises(UniDPOError, match="template: llava"):
        check_settings([*FLAGS, "--model_name_or_path", str(tmp_path), "--template", "llava"])
    check_settings({**text, "template": "qwen"})
    check_settings({**text, "template": "qwen2_vl", "stage": "pt"})
    check_settings({**text, "template": "qwen2_vl", "model_name_or_path": "a/name-on-the-hub"})
    check_settings({**text, "template": "qwen2_vl", "model_name_or_path": str(tiny_qwen2_vl)})
