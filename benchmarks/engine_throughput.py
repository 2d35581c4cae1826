"""How fast the engine makes answers and pairs: batched against one at a time, and Ray against one process.

    python benchmarks/engine_throughput.py            # all, on the tiny Qwen2-VL and the digits, on a CPU
    python benchmarks/engine_throughput.py --skip-ray

Prints ratios of medians. Greedy answers of the batched and the unbatched run are compared and have to be equal.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from uni_dpo.demo.digits import QUESTION, write_digits
from uni_dpo.demo.tiny_model import IMAGE_SIDE, write_tiny_qwen2_vl
from uni_dpo.engine import Question, Request, Sampling, register, run_engine
from uni_dpo.models.backends import make_backend


@register("grader", "length")
def length(answer: str, question: Question) -> float:
    """Any score will do here."""
    return min(1.0, len(answer) / 40)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of `work`, after one run to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def compare_batching(model: Path, questions: list[Question], repeats: int) -> None:
    """`transformers` backend: greedy answers in batches of 64 against one at a time."""
    requests = [Request(question.text, question.images) for question in questions]
    greedy = Sampling(temperature=0.0, max_tokens=16)
    batched = make_backend({"model": str(model), "batch_size": 64})
    single = make_backend({"model": str(model), "batch_size": 1})
    assert batched.generate(requests, greedy) == single.generate(requests, greedy), "the answers differ"
    fast = seconds(lambda: batched.generate(requests, greedy), repeats)
    slow = seconds(lambda: single.generate(requests, greedy), repeats)
    count = len(requests)
    print(f"answers/s: one at a time {count / slow:.1f}, batches of 64 {count / fast:.1f}: ratio {slow / fast:.1f}")


def run_pairs(model: Path, questions: list[Question], **settings: object) -> int:
    """One run from questions to pairs in a fresh directory; returns the number of pairs."""
    spec = {
        "pipeline": "verifiable",
        "plugins": [__file__],  # for the grader, in Ray's workers too
        "models": {"sampler": {"model": str(model), "batch_size": settings.pop("backend_batch", 64)}},
        "sample": {"n": settings.pop("n", 4), "max_tokens": 16},
        "reward": {"grader": "length"},
        "pairs": {"min_gap": 0.5},
        **settings,
    }
    with tempfile.TemporaryDirectory() as work:
        return len(json.loads(run_engine(spec, work, questions=questions).pairs.read_text()))


def compare_pairs(model: Path, questions: list[Question], repeats: int) -> None:
    """Whole runs: batches of 64 answers against one question at a time."""
    made = run_pairs(model, questions)
    fast = seconds(lambda: run_pairs(model, questions), repeats)
    slow = seconds(lambda: run_pairs(model, questions, backend_batch=4, batch_size=1), repeats)
    print(f"pairs/s: one question at a time {made / slow:.1f}, batched {made / fast:.1f}: ratio {slow / fast:.1f}")


def compare_ray(model: Path, questions: list[Question], repeats: int) -> None:
    """Whole runs of 32 answers per question: two actors on a Ray that is up, against one process, a thread each."""
    import ray
    import torch

    torch.set_num_threads(1)
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="warning")
    one = seconds(lambda: run_pairs(model, questions, n=32), repeats)
    two = seconds(lambda: run_pairs(model, questions, n=32, engine="ray", ray={"workers": 2}), repeats)
    ray.shutdown()
    print(f"seconds for {len(questions)} questions: one process {one:.1f}, two actors {two:.1f}: ratio {one / two:.2f}")


def main() -> None:
    """Parse, build the model, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip-ray", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_qwen2_vl(Path(folder) / "model")
        digits = write_digits(Path(folder) / "digits", side=IMAGE_SIDE)["preference"]
        questions = [Question(d.image.stem, QUESTION, (str(d.image),), d.answer) for d in digits]
        compare_batching(model, questions[: options.questions], options.repeats)
        compare_pairs(model, questions[: options.questions], options.repeats)
        if not options.skip_ray:
            compare_ray(model, questions, options.repeats)


if __name__ == "__main__":
    main()
