"""Rows per second of `uni-dpo eval`, against VLMEvalKit's own loop over the same rows, model and machine.

    python benchmarks/eval_batching.py [--rows 200] [--model CHECKPOINT] [--tokens 16] [--repeats 3]

VLMEvalKit's own `Qwen2VLChat` needs a GPU and FlashAttention, so its loop (`infer_data_job`) runs over this
project's adapter; what is compared is one row at a time against sorted batches. Both start with a loaded
model and one warm-up row, both end with their prediction file; the predictions must be equal. Without
`--model` the tiny random Qwen2-VL answers, in float32 on the CPU.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from uni_dpo.demo.digits import write_digits, write_mcq
from uni_dpo.demo.tiny_model import IMAGE_SIDE, write_tiny_qwen2_vl
from uni_dpo.vlmeval.config import Benchmark
from uni_dpo.vlmeval.kit import import_kit
from uni_dpo.vlmeval.load import Loaded, load_benchmark
from uni_dpo.vlmeval.rows import Journal


def vlmevalkits_loop(model: Any, loaded: Loaded, folder: Path) -> tuple[float, list[str]]:
    """Seconds and predictions, one row at a time."""
    from vlmeval.inference import infer_data_job
    from vlmeval.smp import load

    folder.mkdir(parents=True)
    start = time.perf_counter()
    infer_data_job(model, work_dir=str(folder), model_name="model", dataset=loaded.dataset)
    seconds = time.perf_counter() - start
    return seconds, [str(text) for text in load(str(next(folder.glob("*.xlsx"))))["prediction"]]


def our_runner(model: Any, loaded: Loaded, folder: Path, batch_size: int | None) -> tuple[float, list[str]]:
    """Seconds and predictions, in sorted batches, with every image checked first and every batch journalled."""
    from vlmeval.smp import load

    from uni_dpo.vlmeval.rows import Ranks, build_questions
    from uni_dpo.vlmeval.run import Job, Options, answer, write_predictions

    start = time.perf_counter()
    questions, _ = build_questions(model, loaded, None)
    job = Job(loaded, questions, 0, Journal(folder, {}))
    answer(model, job, Options(batch_size=batch_size), Ranks(), "model")
    written = write_predictions(job, "model")
    return time.perf_counter() - start, [str(text) for text in load(str(written))["prediction"]]


def main() -> None:
    """Print one line of a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--model", help="a checkpoint; the tiny random one by default")
    parser.add_argument("--tokens", type=int, default=16, help="longest answer")
    parser.add_argument("--batch-size", type=int, help="auto by default")
    parser.add_argument("--side", type=int, default=IMAGE_SIDE, help="pixels per side of an image")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()

    import_kit()
    from uni_dpo.vlmeval.qwen2_vl import Qwen2VLChat

    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        path = chosen.model or str(write_tiny_qwen2_vl(here / "tiny"))
        digits = [digit for split in write_digits(here / "digits", side=chosen.side).values() for digit in split]
        table = write_mcq(digits[: chosen.rows], here / "digits.tsv")
        model = Qwen2VLChat(path, max_new_tokens=chosen.tokens, dtype="float32" if chosen.model is None else None)
        ratios = []
        for repeat in range(chosen.repeats):
            # Two of it: VLMEvalKit's loop changes the dataset that it runs over.
            fresh = [load_benchmark(Benchmark("digits", "digits", path=table), here / "images") for _ in range(2)]
            model.set_dump_image(fresh[0].dataset.dump_image)
            model.generate(fresh[0].dataset.build_prompt(fresh[0].dataset.data.iloc[0]))
            one_by_one, theirs = vlmevalkits_loop(model, fresh[0], here / "theirs" / str(repeat))
            batched, ours = our_runner(model, fresh[1], here / "ours" / str(repeat), chosen.batch_size)
            if theirs != ours:
                raise SystemExit(f"{sum(a != b for a, b in zip(theirs, ours, strict=True))} predictions differ")
            ratios.append(one_by_one / batched)
            print(
                f"run {repeat + 1}: {chosen.rows} rows, one by one {chosen.rows / one_by_one:.1f} rows/s, "
                f"batched {chosen.rows / batched:.1f} rows/s, ratio {ratios[-1]:.1f}, predictions equal"
            )
        print(f"median ratio {statistics.median(ratios):.1f} on {model.backend.model.device}")


if __name__ == "__main__":
    main()
