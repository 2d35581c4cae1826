"""What the demo trains with. Chosen on the validation split by `benchmarks/demo.py settings`."""

from dataclasses import dataclass, field
from typing import Any

SHARED: dict[str, Any] = {
    "do_train": True,
    "finetuning_type": "full",
    # The tiny model is made from nothing, so its vision tower has to learn too; LlamaFactory's default is to freeze it.
    "freeze_vision_tower": False,
    "freeze_multi_modal_projector": False,
    "template": "qwen2_vl",
    "cutoff_len": 256,
    "overwrite_output_dir": True,
    "overwrite_cache": True,
    "lr_scheduler_type": "cosine",
    "logging_steps": 5,
    "save_strategy": "no",
    "report_to": "none",
}

WARM_UP: dict[str, Any] = {
    "stage": "sft",
    "learning_rate": 3e-3,
    "warmup_ratio": 0.1,
    "num_train_epochs": 6,
    "per_device_train_batch_size": 32,
}

UNI_DPO: dict[str, Any] = {
    "stage": "dpo",
    "pref_loss": "uni_dpo",
    "uni_dpo_nll_lambda": 1.0,
    "learning_rate": 1e-3,
    "num_train_epochs": 4,
    "per_device_train_batch_size": 16,
}

DPO: dict[str, Any] = {
    "stage": "dpo",
    "pref_loss": "sigmoid",
    "pref_beta": 0.5,
    "learning_rate": 1e-4,
    "num_train_epochs": 4,
    "per_device_train_batch_size": 16,
}


@dataclass(frozen=True)
class DemoSettings:
    """One run of the demo, from the random weights to the table.

    Attributes:
        seed: of the splits, the weights, the order of training and the sampled answers.
        warm_up: LlamaFactory's settings of the SFT that makes the model right about half the time.
        samples: answers drawn per image.
        temperature: at which they are drawn.
        pairs_per_image: at most so many.
        uni_dpo: LlamaFactory's settings of the run to show.
        dpo: LlamaFactory's settings of the run to compare with, over the same pairs and steps.
    """

    seed: int = 0
    warm_up: dict[str, Any] = field(default_factory=lambda: dict(WARM_UP))
    samples: int = 8
    temperature: float = 1.0
    pairs_per_image: int = 2
    uni_dpo: dict[str, Any] = field(default_factory=lambda: dict(UNI_DPO))
    dpo: dict[str, Any] = field(default_factory=lambda: dict(DPO))
