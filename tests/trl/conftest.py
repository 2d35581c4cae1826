"""Tiny models to train with TRL, on a CPU and in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Pair(NamedTuple):
    """The tokens of one pair of a batch, without padding, and the row that its prompt has."""

    prompt: Any
    chosen: Any
    rejected: Any


def _pairs_of_0_24(batch: dict[str, Any]) -> list[Pair]:
    rows = []
    for row in range(len(batch["prompt_input_ids"])):
        rows.append(
            Pair(
                *(
                    batch[f"{part}_input_ids"][row][batch[f"{part}_attention_mask"][row].bool()]
                    for part in ("prompt", "chosen", "rejected")
                )
            )
        )
    return rows


def _pairs_of_1(batch: dict[str, Any]) -> list[Pair]:
    ids, answer = batch["input_ids"].chunk(2), batch["completion_mask"].bool().chunk(2)
    prompt = (batch["attention_mask"].bool() & ~batch["completion_mask"].bool()).chunk(2)[0]
    return [
        Pair(ids[0][row][prompt[row]], ids[0][row][answer[0][row]], ids[1][row][answer[1][row]])
        for row in range(len(ids[0]))
    ]


@pytest.fixture(scope="session")
def pairs_in() -> Callable[[dict[str, Any]], list[Pair]]:
    """`pairs_in(batch)` undoes the layout that the installed TRL gives to a batch."""
    return lambda batch: (_pairs_of_0_24 if "prompt_input_ids" in batch else _pairs_of_1)(batch)


@pytest.fixture(scope="session")
def step() -> Callable[..., tuple[Any, dict[str, float]]]:
    """`step(trainer, model, batch)` is the loss of one batch and what would be logged of it."""

    def compute(trainer: Any, model: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, float]]:
        if hasattr(trainer, "get_batch_loss_metrics"):
            return trainer.get_batch_loss_metrics(model, batch)
        loss = trainer.compute_loss(model, batch)
        mode = "train" if trainer.model.training else "eval"
        return loss, {name: values[-1] for name, values in trainer._metrics[mode].items()}

    return compute


@pytest.fixture(scope="session")
def processor(tiny_qwen2_vl: Path) -> Any:
    """The tiny Qwen2-VL's; an image of the digits is 4 tokens."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_qwen2_vl)


@pytest.fixture
def row(digits: dict[str, list[Any]]) -> Callable[[int], dict[str, Any]]:
    """`row(images)` is a row with so many images, as either TRL hands it to its collator."""

    def made(images: int) -> dict[str, Any]:
        return {
            "prompt": "<|vision_start|><|image_pad|><|vision_end|>" * images + "Which?",
            "images": [str(digit.image) for digit in digits["preference"][:images]],
            "chosen": "yes",
            "rejected": "no no",
            "chosen_input_ids": [7],
            "rejected_input_ids": [8, 9],
        }

    return made


@pytest.fixture
def collator(processor: Any) -> Callable[..., Any]:
    """`collator(max_length)` is the installed TRL's for rows with images."""

    def made(max_length: int | None = None) -> Any:
        from uni_dpo.trl import UniDPOTrainer

        if hasattr(UniDPOTrainer, "concatenated_forward"):
            from uni_dpo.trl.version_0_24 import PromptImagesCollator

            return PromptImagesCollator(processor, 0, max_length)
        from uni_dpo.trl.version_1 import WholeImagesCollator

        return WholeImagesCollator(processor=processor, max_length=max_length)

    return made


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen2 of the text recipe."""
    from uni_dpo.demo.tiny_model import write_tiny_text_model

    return write_tiny_text_model(tmp_path_factory.mktemp("models") / "text", "writer")


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Any]:
    """`settings(**changes)` is a `UniDPOConfig` for a short run in float32."""
    import torch

    from uni_dpo.trl import UniDPOConfig

    torch.set_num_threads(1)
    plain = {
        "output_dir": str(tmp_path / "out"),
        "bf16": False,
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "gradient_checkpointing": False,
        "seed": 3,
    }
    return lambda **changes: UniDPOConfig(**(plain | changes))


@pytest.fixture(scope="session")
def text_rows() -> list[dict[str, Any]]:
    """Eight conversations with answers of odd lengths and scores."""
    return [
        {
            "prompt": [{"role": "user", "content": f"Is {number} plus one {number + 1}?"}],
            "chosen": [{"role": "assistant", "content": "Yes." + " Sure." * (number % 3)}],
            "rejected": [{"role": "assistant", "content": "No" + " and no" * (number % 4)}],
            "score_chosen": 4.5 - number / 4,
            "score_rejected": 1.0 + number / 7,
        }
        for number in range(8)
    ]


@pytest.fixture(scope="session")
def image_rows(digits: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Eight conversations over one, two or no images, as `uni-dpo data convert --to trl` writes them."""
    rows = []
    for at, digit in enumerate(digits["preference"][:8]):
        count = (1, 0, 2)[at % 3]
        question = [{"type": "image", "text": None}] * count + [{"type": "text", "text": "Which digit is it?"}]
        wrong = "I cannot say" + " at all" * (at % 4)
        rows.append(
            {
                "prompt": [{"role": "user", "content": question}],
                "chosen": [{"role": "assistant", "content": [{"type": "text", "text": digit.answer}]}],
                "rejected": [{"role": "assistant", "content": [{"type": "text", "text": wrong}]}],
                "images": [str(digit.image)] * count,
                "score_chosen": 4.5 - at / 4,
                "score_rejected": 1.0 + at / 7,
            }
        )
    return rows
