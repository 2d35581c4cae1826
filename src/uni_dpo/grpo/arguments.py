"""From a config to TRL's `GRPOConfig`."""

from dataclasses import fields
from typing import Any, NoReturn

from trl.scripts.utils import TrlParser
from trl.trainer.grpo_config import GRPOConfig

from uni_dpo.errors import UniDPOError, did_you_mean
from uni_dpo.grpo.config import GRPOSettings
from uni_dpo.online.config import OnlineConfig

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

CUT = "max_prompt_length"

ABOVE_ZERO = (
    "temperature",
    "max_completion_length",
    "num_iterations",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "epsilon",
    "num_train_epochs",
)
"""Settings that TRL takes at any value, and stumbles over in the first step, or learns nothing from."""


class _Parser(TrlParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def trl_arguments(settings: GRPOSettings) -> Any:
    """TRL's settings, ours among them.

    Raises:
        UniDPOError: a setting that TRL does not have, or a value that it does not take.
    """
    given = dict(settings.training)
    if given.pop(CUT, None) is not None:
        raise UniDPOError(f"{CUT}: cutting a prompt would tear its images; remove this setting")
    _check_names(given)
    if CUT in GRPOConfig.__dataclass_fields__:  # of TRL 0.24; 1.x cuts no prompt
        given[CUT] = None
    given |= {name: getattr(settings, name) for name in ("output_dir", "seed", "bf16", "gradient_checkpointing")}
    parser = _Parser((GRPOConfig,))
    parser.set_defaults(**given)
    try:
        arguments = parser.parse_args_into_dataclasses(args=[])[0]
    except (ValueError, TypeError) as error:
        raise UniDPOError(f"GRPOConfig: {error}") from error
    _check_values(arguments)
    return arguments


def _check_values(arguments: Any) -> None:
    for name in ABOVE_ZERO:
        if getattr(arguments, name) <= 0:
            raise UniDPOError(f"{name} is {getattr(arguments, name)}; it lies above 0")
    if arguments.max_steps == 0:
        raise UniDPOError("max_steps is 0; name how many, or -1 to train for num_train_epochs")
    if not 0 < arguments.top_p <= 1:
        raise UniDPOError(f"top_p is {arguments.top_p}; it lies above 0, up to 1")


def _check_names(given: dict[str, Any]) -> None:
    known = {setting.name for setting in fields(GRPOConfig)}
    for name in given:
        if name in PPO_NAMES and name not in known:
            raise UniDPOError(f"{name}: unknown setting; TRL calls it {PPO_NAMES[name]}")
        if name not in known:
            hint = did_you_mean(name, known | {shared.name for shared in fields(OnlineConfig)})
            raise UniDPOError(f"{name}: unknown setting, to us and to TRL's GRPOConfig{hint}")
