"""What a PPO config may say."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from uni_dpo.errors import UniDPOError
from uni_dpo.online.config import OnlineConfig
from uni_dpo.settings.options import override, parse, read_mapping
from uni_dpo.storage.identity import digest


@dataclass(frozen=True)
class PPOConfig(OnlineConfig):
    """One PPO run: the settings of every online recipe, and these. Batch sizes are per process.

    Attributes:
        steps: rollouts, each followed by `ppo_epochs` passes over it.
        rollout_batch_size: questions answered per step.
        mini_batch_size: answers per optimizer step.
        micro_batch_size: answers in one forward pass.
        max_tokens, temperature: of the sampled answers.
        kl_coef: β, the cost of a nat of log-ratio to the reference, in units of reward.
        clip: ε of the policy's ratio.
        value_clip: ε of the value.
        value_coef: weight of the value loss.
        gamma, lam: γ and λ of the advantages.
        save_steps: write the state every so many steps.
    """

    steps: int = 100
    rollout_batch_size: int = 32
    mini_batch_size: int = 8
    micro_batch_size: int = 4
    ppo_epochs: int = 4
    learning_rate: float = 1e-5
    max_grad_norm: float = 1.0
    max_tokens: int = 128
    temperature: float = 1.0
    kl_coef: float = 0.05
    clip: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    save_steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("steps", "rollout_batch_size", "mini_batch_size", "micro_batch_size", "ppo_epochs", "max_tokens")
        for name in (*counts, "save_steps"):
            if getattr(self, name) < 1:
                raise UniDPOError(f"{name} is {getattr(self, name)}; it starts at 1")
        for name in ("temperature", "learning_rate", "clip", "value_clip", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise UniDPOError(f"{name} is {getattr(self, name)}; it lies above 0")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UniDPOError(f"{name} is {getattr(self, name)}; it lies between 0 and 1")
        if self.kl_coef < 0 or self.value_coef < 0:
            raise UniDPOError("kl_coef and value_coef start at 0")
        if self.rollout_batch_size % self.mini_batch_size:
            raise UniDPOError("rollout_batch_size is no multiple of mini_batch_size")

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "PPOConfig":
        """Read a YAML file; paths in it are relative to the working directory.

        Args:
            overrides: `key=value`, put in the place of what the file says.

        Raises:
            UniDPOError: no such file, or a setting that is unknown, missing or of the wrong type.
        """
        return parse(cls, override(read_mapping(path, "expected `key: value` lines"), overrides), "")

    def digest(self) -> str:
        """A name for the settings that a resumed run must share with the run that it goes on from."""
        settings = asdict(self)
        for name in ("steps", "save_steps", "output_dir", "micro_batch_size", "gradient_checkpointing"):
            del settings[name]
        return digest(settings)
