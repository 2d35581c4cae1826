"""What benchmarks share that train the embedded model on a task: its warm-up, its pairs, LlamaFactory in process."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from uni_dpo.data.questions import Question
from uni_dpo.demo import digits, scenes
from uni_dpo.demo.digits import Digit
from uni_dpo.demo.scenes import Scene
from uni_dpo.demo.tiny_model import CORPUS, IMAGE_SIDE, write_tiny_qwen2_vl
from uni_dpo.engine import run_engine
from uni_dpo.llamafactory import register
from uni_dpo.monitor.console import readable
from uni_dpo.storage.writing import write_text

Pictures = Sequence[Digit] | Sequence[Scene]
DATASET = "demo"
SHARED: dict[str, Any] = {
    "do_train": True, "finetuning_type": "full", "freeze_vision_tower": False, "freeze_multi_modal_projector": False,
    "template": "qwen2_vl", "cutoff_len": 256, "overwrite_output_dir": True, "overwrite_cache": True,
    "lr_scheduler_type": "cosine", "logging_steps": 5, "save_strategy": "no", "report_to": "none", "dataset": DATASET,
}  # fmt: skip
COLUMNS = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected", "images": "images"}


@dataclass(frozen=True)
class Task:
    """One embedded task.

    Attributes:
        name: as `uni-dpo demo --task` knows it.
        question: asked about every picture.
        write: draw the pictures into a folder, `side` pixels wide, shuffled by `seed` into splits.
        grader: `module:function` that scores the answers of which pairs are made.
        right: how right an answer is, from 0 to 1, when the model is tested.
        model: what the tiny model is made with.
        warm_up: how it learns from right answers, as LlamaFactory's settings.
        pairs: how answers are paired, their scores being from 0 to 5, as the engine's settings.
        max_tokens: of an answer.
    """

    name: str
    question: str
    write: Callable[..., Mapping[str, Pictures]]
    grader: str
    right: Callable[[str, Question], float]
    model: Mapping[str, Any]
    warm_up: Mapping[str, Any]
    pairs: Mapping[str, Any]
    max_tokens: int

    def pictures(self, folder: Path, *, seed: int = 0) -> Mapping[str, Pictures]:
        """Draw the pictures; return those of each split."""
        return self.write(folder, side=IMAGE_SIDE, seed=seed)

    def questions(self, pictures: Pictures) -> list[Question]:
        """What is asked about each picture, with the right answer."""
        return [Question(one.image.stem, self.question, (str(one.image),), reference=one.answer) for one in pictures]


def word_for_word(answer: str, question: Question) -> float:
    """1 for the right answer, 0 for any other."""
    return float(answer.strip() == question.reference)


DIGITS = Task(
    name="digits", question=digits.QUESTION, write=digits.write_digits, grader="uni_dpo.demo.digits:closeness",
    right=word_for_word, model={"corpus": CORPUS}, warm_up={"num_train_epochs": 6, "per_device_train_batch_size": 32},
    pairs={"min_gap": 1.0}, max_tokens=12,
)  # fmt: skip
SCENES = Task(
    name="scenes", question=scenes.QUESTION, write=scenes.write_scenes, grader="uni_dpo.demo.scenes:right_claims",
    right=scenes.right_claims, model={"corpus": scenes.CORPUS, "spread": scenes.SPREAD},
    warm_up={"max_steps": 100, "per_device_train_batch_size": 16}, pairs={"min_gap": 0.5, "choose": "best_worst"},
    max_tokens=48,
)  # fmt: skip


def train(settings: dict[str, Any]) -> Path:
    """Run LlamaFactory in this process on `SHARED` and `settings`; return the output folder."""
    register()
    from llamafactory.train.tuner import run_exp

    output = Path(settings["output_dir"])
    with readable(output):
        run_exp(SHARED | settings, callbacks=[TrainerCallback()])
    return output


def warm_up(folder: Path, pictures: Pictures, *, task: Task = DIGITS, seed: int = 0) -> Path:
    """Train the embedded model of `seed` a little on right answers; return the checkpoint."""
    output = folder / "checkpoint"
    if not (output / "config.json").exists():
        asked = f"<image>{task.question}"
        rows = [{"instruction": asked, "output": one.answer, "images": [str(one.image)]} for one in pictures]
        columns = {"prompt": "instruction", "response": "output", "images": "images"}
        write_data(folder / "data", rows, {"columns": columns})
        train(
            {
                "stage": "sft",
                "model_name_or_path": str(write_tiny_qwen2_vl(folder / "random", seed=seed, **task.model)),
                "learning_rate": 3e-3,
                "warmup_ratio": 0.1,
                "dataset_dir": str(folder / "data"),
                "output_dir": str(output),
                "seed": seed,
                **task.warm_up,
            }
        )
    return output


def make_pairs(
    checkpoint: Path, folder: Path, pictures: Pictures, *, task: Task = DIGITS, seed: int = 0
) -> list[dict[str, Any]]:
    """Let the model answer, grade the answers, pair them; return the rows."""
    file = folder / "dataset" / "pairs.json"
    if not file.exists():
        run_engine(
            {
                "pipeline": "verifiable", "seed": seed,
                "models": {"sampler": {"model": str(checkpoint), "batch_size": 256}},
                "sample": {"n": 8, "temperature": 1.0, "max_tokens": task.max_tokens},
                "reward": {"grader": task.grader, "low": 0.0, "high": 5.0},
                "pairs": {"max_pairs_per_question": 2, "length_balance": "off", **task.pairs},
                "dataset": {"name": task.name},
            },
            folder,
            questions=task.questions(pictures),
        )  # fmt: skip
    return list(json.loads(file.read_text()))


def write_data(folder: Path, rows: list[dict[str, Any]], entry: dict[str, Any]) -> None:
    """Write rows as the dataset `DATASET`."""
    write_text(folder / f"{DATASET}.json", json.dumps(rows))
    write_text(folder / "dataset_info.json", json.dumps({DATASET: {"file_name": f"{DATASET}.json", **entry}}))


def rightness(checkpoint: Path, pictures: Pictures, *, task: Task = DIGITS) -> list[float]:
    """How right the likeliest answer about each picture is, from 0 to 1."""
    from uni_dpo.models.backends.base import Request, Sampling, make_backend

    backend = make_backend({"model": str(checkpoint), "batch_size": 256})
    questions = task.questions(pictures)
    replies = backend.generate(
        [Request(question.text, question.images) for question in questions],
        Sampling(temperature=0.0, max_tokens=task.max_tokens),
    )
    return [
        task.right(reply[0].text, question) if isinstance(reply, list) else 0.0
        for reply, question in zip(replies, questions, strict=True)
    ]


def exact_match(checkpoint: Path, pictures: Sequence[Digit]) -> float:
    """The share of images whose likeliest answer is the right one."""
    right = rightness(checkpoint, pictures)
    return sum(right) / len(right)
