"""What the online recipes (PPO, GRPO) share; the settings that each of them has are here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from uni_dpo.data.questions import InputOptions
from uni_dpo.errors import UniDPOError
from uni_dpo.settings.options import Count, Seed, check_ranges, load


@dataclass(frozen=True)
class RewardOptions:
    """Where the rewards come from: exactly one of `model` and `function`.

    Attributes:
        model: folder of a reward model, as `uni-dpo score` takes it.
        function: exact, numeric, multiple_choice, or `package.module:function` of (answer, question) → number.
        template: LlamaFactory's template of the reward model; None for the only one of its family.
    """

    model: str | None = None
    function: str | None = None
    template: str | None = None


@dataclass(frozen=True)
class OnlineConfig:
    """Policy, questions and reward.

    Attributes:
        model: folder or hub name of the policy to start from, which is also the reference.
        output_dir: gets the checkpoint, the log, and the state from which a stopped run resumes.
        reward: what rates the answers.
        questions: file and image root of the questions.
        finetuning: which weights learn: all, or a LoRA adapter.
        freeze_vision_tower: leave the vision tower and the projector as they are.
        bf16: compute in bfloat16; weights that learn stay float32.
        min_pixels, max_pixels: limits of the image processor, where it has such.
    """

    model: str
    output_dir: str
    reward: RewardOptions
    questions: InputOptions = field(default_factory=InputOptions)
    finetuning: Literal["full", "lora"] = "lora"
    lora_rank: Count = 64
    lora_alpha: Count = 16
    freeze_vision_tower: bool = True
    gradient_checkpointing: bool = False
    bf16: bool = False
    min_pixels: Count | None = None
    max_pixels: Count | None = None
    trust_remote_code: bool = False
    seed: Seed = 0

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """See `settings.options.load`."""
        return load(cls, path, overrides)

    def __post_init__(self) -> None:
        check_ranges(self)
        if (self.reward.model is None) == (self.reward.function is None):
            raise UniDPOError("reward: set one of `model` and `function`")
