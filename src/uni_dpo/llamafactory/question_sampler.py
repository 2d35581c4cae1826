"""The order of training in which the pairs of a question stand together."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from uni_dpo.errors import UniDPOError
from uni_dpo.shared_prefix import question_key

POOL_BATCHES = 50
"""Batches among whose questions those of like length are put together."""


@dataclass
class _Question:
    """The places of a question's pairs, and how many tokens its prompt and different answers have."""

    prompt: int
    pairs: list[int] = field(default_factory=list)
    answers: dict[bytes, int] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.prompt + sum(self.answers.values())


class QuestionSampler(Sampler[int]):
    """Every pair once per epoch: questions in random order, the pairs of each in random order and next to each other.

    Args:
        dataset: tokenized pairs.
        seed: fixes the draw; each epoch has a draw of its own, the same in every run.
        like_lengths_of: pairs of a step: then questions of like length follow each other, so that little is padded;
            None leaves them in random order.

    Raises:
        UniDPOError: the data are streamed, so that a question's pairs can't be known before training.
    """

    def __init__(self, dataset: Any, seed: int, like_lengths_of: int | None = None) -> None:
        if not hasattr(dataset, "__len__"):
            raise UniDPOError("group_by_question needs all pairs before training: set streaming: false")
        self.seed = seed
        self.epoch = 0
        self._pool = like_lengths_of and POOL_BATCHES * like_lengths_of
        self._questions = _questions(dataset)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(len(question.pairs) for question in self._questions)

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed + self.epoch)
        order = [self._questions[at] for at in torch.randperm(len(self._questions), generator=draw).tolist()]
        for question in order if self._pool is None else _by_length(order, self._pool):
            pairs = question.pairs
            yield from (pairs[at] for at in torch.randperm(len(pairs), generator=draw).tolist())


def _by_length(questions: Sequence[_Question], pool: int) -> Iterator[_Question]:
    """Questions in pools of `pool` pairs or a little more, the longest of each pool first."""
    held: list[_Question] = []
    for question in questions:
        held.append(question)
        if sum(len(one.pairs) for one in held) >= pool:
            yield from sorted(held, key=lambda one: -one.length)
            held = []
    yield from sorted(held, key=lambda one: -one.length)


def _questions(dataset: Sequence[dict[str, Any]]) -> list[_Question]:
    """The questions of a dataset, in the order of the file."""
    found: dict[bytes, _Question] = {}
    for place in range(len(dataset)):
        pair = dataset[place]
        prompt, key = question_key(pair)
        digest = hashlib.sha256(repr(key).encode(errors="surrogatepass")).digest()
        question = found.setdefault(digest, _Question(prompt))
        question.pairs.append(place)
        for side in ("chosen", "rejected"):
            answer = np.asarray(pair[f"{side}_input_ids"][prompt:], np.int64)
            question.answers[hashlib.sha256(answer.tobytes()).digest()] = len(answer)
    return list(found.values())
