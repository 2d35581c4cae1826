"""A registered LlamaFactory in this process, scored pairs over real images, and runs that return what they logged."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.digits import QUESTION, Digit, answer

PAIRS = 16


def scored_pairs(digits: list[Digit], images: tuple[int, ...] = (1, 0, 2)) -> list[dict[str, Any]]:
    """Pairs of a right and a wrong answer of odd lengths, over as many images as `images` says in turn."""
    draw = random.Random(0)
    rows = []
    for at, digit in enumerate(digits[:PAIRS]):
        count = images[at % len(images)]
        wrong = draw.choice([label for label in range(10) if label != digit.label])
        rows.append(
            {
                "instruction": "<image>" * count + QUESTION,
                "chosen": digit.answer,
                "rejected": answer(wrong) + " yes" * (at % 4),
                "images": [str(digit.image)] * count,
                "score_chosen": 5.0 - at % 5 * 0.7,
                "score_rejected": round(2.0 - abs(wrong - digit.label) / 9, 3),
            }
        )
    return rows


@dataclass(frozen=True)
class PairData:
    """A folder with `dataset_info.json` and the datasets named in it."""

    folder: Path

    def add(self, name: str, rows: list[dict[str, Any]], **entry: Any) -> None:
        """Write `rows` and register them; `entry` overrides parts of the alpaca entry."""
        (self.folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
        columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected", "images": "images"}
        info_file = self.folder / "dataset_info.json"
        info = json.loads(info_file.read_text()) if info_file.exists() else {}
        info[name] = {"file_name": f"{name}.json", "ranking": True, "columns": columns, **entry}
        info_file.write_text(json.dumps(info), encoding="utf-8")


@pytest.fixture(scope="session")
def pair_data(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, list[Digit]]) -> PairData:
    """The dataset `mixed`: text-only, one-image and two-image pairs in turn."""
    data = PairData(tmp_path_factory.mktemp("pairs"))
    data.add("mixed", scored_pairs(digits["preference"]))
    return data


Config = Callable[..., dict[str, Any]]
Train = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def config(tiny_qwen2_vl: Path, pair_data: PairData, tmp_path: Path) -> Config:
    """`config(**settings)` describes a short, deterministic run with every setting that matters to its numbers."""
    base = {
        "model_name_or_path": str(tiny_qwen2_vl),
        "stage": "dpo",
        "do_train": True,
        "finetuning_type": "full",
        "pref_loss": "uni_dpo",
        "uni_dpo_nll_lambda": 0.2,
        "dataset_dir": str(pair_data.folder),
        "dataset": "mixed",
        "template": "qwen2_vl",
        "cutoff_len": 512,
        "output_dir": str(tmp_path / "out"),
        "overwrite_output_dir": True,
        "overwrite_cache": True,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "seed": 3,
    }
    return lambda **settings: base | settings


@pytest.fixture
def train(config: Config) -> Train:
    """`train(**settings)` runs LlamaFactory in this process and returns its log lines, unrounded."""
    import torch

    from uni_dpo.llamafactory import register

    torch.set_num_threads(1)
    register()

    def run(**settings: Any) -> list[dict[str, Any]]:
        from llamafactory.train.tuner import run_exp

        described = config(**settings)
        run_exp(dict(described))
        state = json.loads((Path(described["output_dir"]) / "trainer_state.json").read_text())
        return state["log_history"]

    return run
