"""How much of a training's time the ledger takes: what is spent in its own functions, over the time of all steps.

    python benchmarks/ledger.py [--pairs 512] [--batch 8]

The model is the demo's, of 0.7 M parameters: its steps are as short as steps get, so the share is at its largest.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo_training import COLUMNS, DATASET, write_data

from uni_dpo.demo.digits import QUESTION, answer, write_digits
from uni_dpo.demo.tiny_model import IMAGE_SIDE, write_tiny_qwen2_vl
from uni_dpo.ledger.writing import PairLedger
from uni_dpo.llamafactory import register

spent = {"add": 0.0, "flush": 0.0}


def _timed(name: str) -> None:
    function: Callable[..., Any] = getattr(PairLedger, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - start

    setattr(PairLedger, name, timed)


def main() -> None:
    """Train once and print the share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    for name in spent:
        _timed(name)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        digits = write_digits(folder / "images", side=IMAGE_SIDE, seed=0)["preference"]
        rows = [
            {
                "instruction": f"<image>{QUESTION}",
                "chosen": digit.answer,
                "rejected": answer((digit.label + 1) % 10),
                "images": [str(digit.image)],
                "score_chosen": 5.0,
                "score_rejected": 1.0,
            }
            for digit in (digits * (options.pairs // len(digits) + 1))[: options.pairs]
        ]
        write_data(folder, rows, {"ranking": True, "columns": COLUMNS})
        settings = {
            "stage": "dpo", "do_train": True, "pref_loss": "uni_dpo", "finetuning_type": "full", "template": "qwen2_vl",
            "model_name_or_path": str(write_tiny_qwen2_vl(folder / "model", seed=0)), "dataset": DATASET,
            "dataset_dir": place, "output_dir": str(folder / "out"), "cutoff_len": 256, "report_to": "none",
            "per_device_train_batch_size": options.batch, "save_steps": 32, "save_only_model": True,
            "logging_steps": 8, "overwrite_cache": True,
        }  # fmt: skip
        register()
        from llamafactory.train.tuner import run_exp

        run_exp(settings)
        runtime = json.loads((folder / "out" / "train_results.json").read_text())["train_runtime"]
    print(f"{options.pairs} pairs in {runtime:.2f} s; recording {spent['add']:.4f} s, writing {spent['flush']:.4f} s")
    print(f"the ledger takes {sum(spent.values()) / runtime:.2%} of the training")


if __name__ == "__main__":
    main()
