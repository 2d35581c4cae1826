"""A file of ranked answers through the whole of training: two sequences per pair against a question at a time.

    python benchmarks/ranked_training.py                     12 questions of 5 answers, images of 448 × 448 pixels
    python benchmarks/ranked_training.py --answers 3 --images 224

Both runs read the same file by the same code, with the tiny Qwen2-VL of the demo, and train one epoch on all pairs;
the first passes pairs on as LlamaFactory does. CPU seconds from the first step to the last, data loading included,
and within them those in which batches are made: images opened, resized and cut into patches, tokens padded.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

MODES = {
    "two sequences per pair": {"pair_forward": "ordinary"},
    "a question at a time": {"pair_forward": "shared_prefix", "group_by_question": True},
}


WORDS = ("one", "two", "three", "four", "five", "six", "seven")


def write_data(folder: Path, questions: int, answers: int, side: int) -> None:
    """Photograph-like JPEG files and ranked answers to them, registered as `ranked`."""
    import numpy as np
    from PIL import Image

    from uni_dpo.data.register import register_file

    draw = random.Random(0)
    rows = []
    for question in range(questions):
        noise = np.random.default_rng(question).integers(0, 255, (side // 16, side // 16, 3), np.uint8)
        Image.fromarray(noise).resize((2 * side, 2 * side), Image.Resampling.BICUBIC).save(folder / f"{question}.jpg")
        texts = [
            " ".join(draw.choices(["one", "two", "three", "four", "five", "six", "seven"], k=24))
            for _ in range(answers)
        ]
        rows.append(
            {
                "instruction": "<image>Which digit is written here?",
                "answers": texts,
                "scores": list(range(answers, 0, -1)),
                "images": [f"{question}.jpg"],
            }
        )
    (folder / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    register_file("ranked", folder / "ranked.jsonl", folder)


def write_model(folder: Path, side: int) -> None:
    """The tiny Qwen2-VL, whose processor lets images be as large as real ones."""
    from uni_dpo.demo.tiny_model import write_tiny_qwen2_vl

    write_tiny_qwen2_vl(folder)
    for file in folder.glob("*processor_config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        images = config.get("image_processor", config)
        images |= {"size": {"shortest_edge": 56 * 56, "longest_edge": side * side}, "max_pixels": side * side}
        file.write_text(json.dumps(config), encoding="utf-8")


def train(folder: Path, side: int, pairs: int, **settings: Any) -> tuple[float, float]:
    """CPU seconds of training, and of making its batches."""
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    from uni_dpo.llamafactory.data import ScoredPairCollator
    from uni_dpo.llamafactory.pair_forward import SharedPrefixCollator

    spent = {"training": 0.0, "batches": 0.0}

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            spent.update(training=-time.process_time(), batches=0.0)

        def on_train_end(self, *_: Any, **__: Any) -> None:
            spent["training"] += time.process_time()

    outer = ScoredPairCollator if settings["pair_forward"] == "ordinary" else SharedPrefixCollator
    collate = outer.__call__

    def timed(self: Any, features: Any) -> Any:
        start = time.process_time()
        batch = collate(self, features)
        spent["batches"] += time.process_time() - start
        return batch

    outer.__call__ = timed  # type: ignore[method-assign]
    try:
        run_exp(
            {
                "model_name_or_path": str(folder / "model"),
                "stage": "dpo",
                "do_train": True,
                "finetuning_type": "full",
                "pref_loss": "uni_dpo",
                "dataset_dir": str(folder),
                "dataset": "ranked",
                "template": "qwen2_vl",
                "image_max_pixels": side * side,
                "cutoff_len": 4096,
                "output_dir": str(folder / settings["pair_forward"]),
                "overwrite_cache": True,
                "per_device_train_batch_size": pairs,
                "num_train_epochs": 1,
                "save_strategy": "no",
                "report_to": "none",
                "use_cpu": True,
                **settings,
            },
            callbacks=[Clock()],
        )
    finally:
        outer.__call__ = collate  # type: ignore[method-assign]
    return spent["training"], spent["batches"]


def main() -> None:
    """Parse, train twice, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--answers", type=int, default=5)
    parser.add_argument("--images", type=int, default=448, help="pixels of a side as the model sees them")
    options = parser.parse_args()

    import torch

    from uni_dpo.llamafactory import register

    torch.set_num_threads(1)
    register()
    each = options.answers * (options.answers - 1) // 2
    pairs = options.questions * each
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", options.images)
        write_data(folder, options.questions, options.answers, options.images)
        for mode, settings in MODES.items():
            training, batches = train(folder, options.images, each, **settings)
            lines.append((mode, training, batches))
    print("| training | pairs | CPU s | pairs per CPU s | | of it batches, CPU s | images of pairs per CPU s | |")
    print("| --- | ---: | ---: | ---: | --- | ---: | ---: | --- |")
    for mode, training, batches in lines:
        print(
            f"| {mode} | {pairs} | {training:.1f} | {pairs / training:.2f} | × {lines[0][1] / training:.1f} "
            f"| {batches:.2f} | {pairs / batches:.1f} | × {lines[0][2] / batches:.1f} |"
        )


if __name__ == "__main__":
    main()
