"""Averages over pairs."""

import torch

from uni_dpo.monitor.progress import PairAverages


class TwoRanks:
    """Stands for an accelerator whose other rank saw one pair of value 7."""

    device = "cpu"

    def reduce(self, sums: torch.Tensor) -> torch.Tensor:
        return sums + torch.tensor([7.0, 1.0])


class OneRank:
    device = "cpu"

    def reduce(self, sums: torch.Tensor) -> torch.Tensor:
        return sums


def test_every_pair_counts_once_over_batches_and_ranks() -> None:
    averages = PairAverages(("x",))
    averages.add("train", {"x": torch.tensor([1.0, 2.0])})
    averages.add("train", {"x": torch.tensor([6.0])})
    averages.add("eval", {"x": torch.tensor([100.0])})
    assert averages.take("train", TwoRanks()) == {"x": (1 + 2 + 6 + 7) / 4}
    assert averages.take("eval", OneRank()) == {"x": 100.0}


def test_taking_starts_anew() -> None:
    averages = PairAverages(("x",))
    averages.add("train", {"x": torch.tensor([1.0])})
    averages.take("train", OneRank())
    assert averages.take("train", OneRank()) == {}
