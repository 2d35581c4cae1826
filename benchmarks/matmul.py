"""The projection onto the vocabulary on one CPU core, in float32: PyTorch's own product against `matmul_nt`.

    python benchmarks/matmul.py

Each line is one block of the vocabulary in a step of `pair_step.py`: its logits, and the gradients of the hidden states
and of the weights. The two take turns; the table holds medians. Where PyTorch has no oneDNN the ratio is 1.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from uni_dpo.matmul import matmul_nt


def products(tokens: int, width: int, words: int) -> dict[str, tuple[Tensor, Tensor]]:
    """What is multiplied, as (M, K) and (N, K)."""
    hidden, weight, gradient = torch.randn(tokens, width), torch.randn(words, width), torch.randn(tokens, words)
    return {
        "logits": (hidden, weight),
        "gradient of the hidden states": (gradient, weight.t()),
        "gradient of the weights": (gradient.t(), hidden.t()),
    }


def milliseconds(work: Callable[[], Tensor]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def medians(first: Callable[[], Tensor], second: Callable[[], Tensor], repeats: int) -> tuple[float, float]:
    """Time both in turns, after a first call of each."""
    times = [(milliseconds(first), milliseconds(second)) for _ in range(repeats + 1)][1:]
    return statistics.median(pair[0] for pair in times), statistics.median(pair[1] for pair in times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256, help="scored tokens of a batch")
    parser.add_argument("--words", type=int, default=2048, help="of the block")
    parser.add_argument("--repeats", type=int, default=41)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| product | M × N × K | PyTorch ms | `matmul_nt` ms | |\n| --- | --- | ---: | ---: | --- |")
    for width in (256, 1536):
        for name, (left, right) in products(options.tokens, width, options.words).items():
            stock, ours = medians(partial(torch.mm, left, right.t()), partial(matmul_nt, left, right), options.repeats)
            shape = f"{len(left)} × {len(right)} × {left.shape[1]}"
            print(f"| {name} | {shape} | {stock:.2f} | {ours:.2f} | ÷ {stock / ours:.1f} |")


if __name__ == "__main__":
    main()
