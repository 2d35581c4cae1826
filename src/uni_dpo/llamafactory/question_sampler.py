"""The order of training in which the pairs of a question stand together."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from uni_dpo.errors import UniDPOError
from uni_dpo.shared_prefix import question_key


class QuestionSampler(Sampler[int]):
    """Every pair once per epoch: questions in random order, the pairs of each in random order and next to each other.

    Args:
        dataset: tokenized pairs.
        seed: fixes the draw; each epoch has a draw of its own, the same in every run.

    Raises:
        UniDPOError: the data are streamed, so that a question's pairs can't be known before training.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        if not hasattr(dataset, "__len__"):
            raise UniDPOError("group_by_question needs all pairs before training: set streaming: false")
        self.seed = seed
        self.epoch = 0
        self._questions = _questions(dataset)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(map(len, self._questions))

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed + self.epoch)
        for question in torch.randperm(len(self._questions), generator=draw).tolist():
            pairs = self._questions[question]
            yield from (pairs[at] for at in torch.randperm(len(pairs), generator=draw).tolist())


def _questions(dataset: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The rows of each question, in the order of the file."""
    rows: dict[bytes, list[int]] = {}
    for place in range(len(dataset)):
        _, key = question_key(dataset[place])
        digest = hashlib.sha256(repr(key).encode(errors="surrogatepass")).digest()
        rows.setdefault(digest, []).append(place)
    return list(rows.values())
