"""What a GRPO config may say: the settings of every online recipe, and TRL's own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from annotated_types import Ge, Gt, Le

from uni_dpo.errors import UniDPOError, did_you_mean
from uni_dpo.online import OnlineConfig
from uni_dpo.settings.machine import is_true, reporter_faults
from uni_dpo.settings.options import parse
from uni_dpo.settings.reading import FaultCollector, SettingsError, located, override, read_mapping
from uni_dpo.settings.schema import Schema, schema_of, schema_of_known
from uni_dpo.settings.sources import GRPO, RANGES, known_settings
from uni_dpo.settings.training import setting_faults
from uni_dpo.storage.identity import digest

PROMPT_LIMIT = "max_prompt_length"
MAY_CHANGE = {"max_steps", "num_train_epochs", "save_steps", "save_total_limit", "logging_steps"}
"""Settings of TRL's that a resumed run need not share with the run that it resumes."""

PPO_NAMES = {
    "steps": "max_steps",
    "max_tokens": "max_completion_length",
    "kl_coef": "beta",
    "clip": "epsilon",
    "rollout_batch_size": "generation_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "ppo_epochs": "num_iterations",
}
"""What TRL calls a setting of `uni-dpo ppo`."""

GRPO_RANGES: dict[str, tuple[object, ...]] = {
    **RANGES,
    **dict.fromkeys(("temperature", "learning_rate", "epsilon"), (Gt(0),)),
    **dict.fromkeys(("max_completion_length", "num_iterations", "generation_batch_size"), (Ge(1),)),
    "num_generations": (Ge(2),),
    "beta": (Ge(0),),
    "min_p": (Ge(0), Le(1)),
}
"""Ranges of settings that TRL takes at any value, and then fails in the first step or learns nothing."""


@dataclass(frozen=True)
class GRPOSettings(OnlineConfig):
    """One GRPO run.

    Attributes:
        training: everything else, by the names of TRL's `GRPOConfig`.
    """

    training: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """See `OnlineConfig.load`; settings of TRL's are checked too."""
        raw = override(read_mapping(path), overrides)
        shared = {name.name for name in fields(OnlineConfig)}
        training = {name: value for name, value in raw.items() if name not in shared}
        faults = FaultCollector()
        with located(raw):
            with faults.collecting():
                check_training(training)
            with faults.collecting():
                settings = parse(cls, {name: raw[name] for name in raw if name in shared}, "")
            faults.raise_any()
            return replace(settings, training=training)

    def digest(self) -> str:
        """Name the settings that a resumed run must share with the run that it resumes."""
        settings = asdict(self)
        del settings["output_dir"], settings["gradient_checkpointing"]
        settings["training"] = {name: value for name, value in self.training.items() if name not in MAY_CHANGE}
        return digest(settings)


def schema() -> Schema:
    """Make the JSON schema of the configuration: our settings, and those of TRL."""
    ours = schema_of(OnlineConfig)
    theirs = schema_of_known(known_settings(GRPO), GRPO_RANGES)["properties"]
    return ours | {"properties": theirs | ours["properties"]}


def check_training(training: Mapping[str, Any]) -> None:
    """See that TRL has these settings and takes their values, without importing it.

    Raises:
        SettingsError: every setting that is unknown, of the wrong type or out of range.
    """
    known = {setting.name: setting for setting in known_settings(GRPO)}
    faults = [*_unknown(training, known), *setting_faults(training, known, GRPO_RANGES)]
    if training.get(PROMPT_LIMIT) is not None:
        faults.append((PROMPT_LIMIT, "cutting a prompt would cut its images too; remove this setting"))
    faults += reporter_faults(training)
    if is_true(training.get("use_vllm")) and find_spec("vllm") is None:
        faults.append(("use_vllm", "needs the package vllm, which is not installed; set it to false"))
    if training.get("max_steps") == 0:
        faults.append(("max_steps", "0 trains nothing; name how many, or -1 to train for num_train_epochs"))
    if faults:
        raise SettingsError(faults)


def _unknown(training: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "num_generations" not in known:
        return  # TRL is not installed, and says so itself
    for name in training:
        if name == PROMPT_LIMIT:
            continue
        if name not in known and name in PPO_NAMES:
            yield name, f"unknown setting; TRL calls it {PPO_NAMES[name]}"
        elif name not in known:
            hint = did_you_mean(name, {*known} | {shared.name for shared in fields(OnlineConfig)})
            yield str(name), f"unknown setting, to us and to TRL's GRPOConfig{hint}"


def trl_arguments(settings: GRPOSettings) -> Any:
    """Make TRL's settings, ours among them.

    Raises:
        UniDPOError: a setting that TRL does not have, or a value that it does not take.
    """
    from argparse import ArgumentError

    from trl.scripts.utils import TrlParser
    from trl.trainer.grpo_config import GRPOConfig

    check_training(settings.training)
    given = {name: value for name, value in settings.training.items() if name != PROMPT_LIMIT}
    if PROMPT_LIMIT in GRPOConfig.__dataclass_fields__:  # of TRL 0.24; 1.x cuts no prompt
        given[PROMPT_LIMIT] = None
    given |= {name: getattr(settings, name) for name in ("output_dir", "seed", "bf16", "gradient_checkpointing")}
    parser = TrlParser((GRPOConfig,), exit_on_error=False)
    parser.set_defaults(**given)
    try:
        return parser.parse_args_into_dataclasses(args=[])[0]
    except (ValueError, TypeError, OverflowError, ArgumentError) as error:
        raise UniDPOError(f"GRPOConfig: {error}") from error
