"""What a PPO config may say."""

from dataclasses import asdict, dataclass

from uni_dpo.errors import UniDPOError
from uni_dpo.online import OnlineConfig
from uni_dpo.settings.options import Count, NotNegative, Positive, Share
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

    steps: Count = 100
    rollout_batch_size: Count = 32
    mini_batch_size: Count = 8
    micro_batch_size: Count = 4
    ppo_epochs: Count = 4
    learning_rate: Positive = 1e-5
    max_grad_norm: Positive = 1.0
    max_tokens: Count = 128
    temperature: Positive = 1.0
    kl_coef: NotNegative = 0.05
    clip: Positive = 0.2
    value_clip: Positive = 0.2
    value_coef: NotNegative = 0.1
    gamma: Share = 1.0
    lam: Share = 0.95
    save_steps: Count = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollout_batch_size % self.mini_batch_size:
            raise UniDPOError("rollout_batch_size is no multiple of mini_batch_size")

    def digest(self) -> str:
        """Return a name for the settings that a resumed run must share with the run that it resumes."""
        settings = asdict(self)
        for name in ("steps", "save_steps", "output_dir", "micro_batch_size", "gradient_checkpointing"):
            del settings[name]
        return digest(settings)
