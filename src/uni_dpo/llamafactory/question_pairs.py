"""Tokenized questions, and the pairs of their answers, made when they are asked for.

A question is tokenized once, with each of its answers once; five ranked answers to it are one row on disk, and ten
pairs in training. A row of a pair file is a question with two answers. The sampler keeps a question's pairs together.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from llamafactory.data.processor.processor_utils import infer_seqlen
from llamafactory.extras import logging
from llamafactory.extras.constants import IGNORE_INDEX
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from uni_dpo.data.ranking import PairChoice
from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.writing import KEY, NAME, pair_key
from uni_dpo.shared_prefix.questions import question_key

logger = logging.get_logger(f"llamafactory.{__name__}")  # below LlamaFactory's own, which shows what is INFO

MEDIA = ("images", "videos", "audios")
REJECTED_IMAGES = "rejected_images"
"""What the rejected answer of a pair sees in place of `images`; None where both see the same."""
TEXT_COLUMNS = ("question", "answers")
QUESTION_COLUMNS = (
    *("prompts", "answer_ids", "same_as", "scores", "ranked", "length", "source"),
    *TEXT_COLUMNS,
    *MEDIA,
    REJECTED_IMAGES,
)
"""Of a tokenized question: the tokens of its prompt, or of two where the rejected answer sees other images; those of
each answer; for each answer the first that is equal, and its score; whether its answers are ranked, or a pair as it
stands; tokens with the longest answer; its file and row; its text and those of its answers; its media."""

TokenizedQuestion = dict[str, Any]


def drawn_pairs(question: TokenizedQuestion, choice: PairChoice) -> list[tuple[int, int]]:
    """Return the pairs (better, worse) of a question's answers; a row of a pair file is the pair that it is."""
    return choice.pairs(question["scores"], question["same_as"]) if question["ranked"] else [(0, 1)]


def pair_feature(question: TokenizedQuestion, better: int, worse: int, cutoff_len: int) -> dict[str, Any]:
    """Give a pair as LlamaFactory's pairwise tokenization gives it, cut to `cutoff_len` as it cuts, with its scores."""
    prompts, answers = question["prompts"], question["answer_ids"]
    sides = {"chosen": better, "rejected": worse}
    longest = max(len(answers[place]) for place in sides.values())
    kept_prompt, kept_answer = infer_seqlen(max(map(len, prompts)), longest, cutoff_len)
    feature: dict[str, Any] = {}
    for (side, place), prompt in zip(sides.items(), (prompts[0], prompts[-1]), strict=True):
        answer = answers[place][:kept_answer]
        ids = prompt[:kept_prompt] + answer
        feature[f"{side}_input_ids"] = ids
        feature[f"{side}_attention_mask"] = [1] * len(ids)
        feature[f"{side}_labels"] = [IGNORE_INDEX] * (len(ids) - len(answer)) + answer
    feature |= {name: question[name] for name in (*MEDIA, REJECTED_IMAGES)} | {
        KEY: pair_texts_of(question, better, worse)[KEY]
    }
    return feature | {f"score_{side}": question["scores"][place] for side, place in sides.items()}


def pair_texts_of(question: TokenizedQuestion, better: int, worse: int) -> dict[str, Any]:
    """Return a pair as the ledger's texts have it: its key and name, its texts, images and scores."""
    name = question["source"]
    if question["ranked"]:
        name += f", answers {better + 1} and {worse + 1}"
    chosen, rejected = (question["answers"][place] for place in (better, worse))
    return {
        KEY: pair_key(name, question["question"], chosen, rejected),
        NAME: name,
        "question": question["question"],
        "chosen": chosen,
        "rejected": rejected,
        "images": question.get("images"),
        "score_chosen": question["scores"][better],
        "score_rejected": question["scores"][worse],
    }


def cut_media(question: TokenizedQuestion, pair: dict[str, Any], cutoff_len: int, media_ids: Collection[int]) -> str:
    """Return what `cutoff_len` cuts from the images of a pair; empty where it cuts nothing."""
    if question["length"] <= cutoff_len:
        return ""
    for side, prompt in zip(("chosen", "rejected"), (question["prompts"][0], question["prompts"][-1]), strict=True):
        there = pair[f"{side}_input_ids"][: pair[f"{side}_labels"].count(IGNORE_INDEX)]
        kept, needed = (sum(token in media_ids for token in ids) for ids in (there, prompt))
        if kept != needed:
            return (
                f"{question['source']}: cutoff_len {cutoff_len} keeps {kept} of {needed} image tokens; "
                f"the pair is {question['length']} tokens long"
            )
    return ""


class QuestionPairs(Dataset[dict[str, Any]]):
    """The pairs of tokenized questions, question by question in the order of the file, best first.

    Args:
        questions: a `datasets.Dataset` of `QUESTION_COLUMNS`.
        choice: which pairs of ranked answers count.
        cutoff_len: LlamaFactory's limit on prompt and answer.
        media_ids: the tokens that stand for parts of images, videos and audios.

    Raises:
        UniDPOError: no row makes a pair.
    """

    def __init__(self, questions: Any, choice: PairChoice, cutoff_len: int, media_ids: Collection[int]) -> None:
        self.questions, self.cutoff_len, self.media_ids = questions, cutoff_len, media_ids
        ranks = questions.select_columns(["scores", "same_as", "ranked"])
        places = [(row, *pair) for row, rank in enumerate(ranks) for pair in drawn_pairs(rank, choice)]
        self._places = np.array(places, np.int64).reshape(-1, 3)
        self._last: tuple[int, TokenizedQuestion] | None = None
        if not places:
            raise UniDPOError(
                "no row of the training data makes a pair: give the answers of a row unlike scores, or let more pairs "
                "count (uni_dpo_pairs: all, uni_dpo_min_gap: 0)"
            )

    @property
    def column_names(self) -> list[str]:
        """What a pair holds."""
        return list(self[0])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row, better, worse = map(int, self._places[place])
        return pair_feature(self._question(row), better, worse, self.cutoff_len)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[place] for place in range(len(self)))

    def texts(self) -> Iterator[dict[str, Any]]:
        """Yield every pair in turn, as `pair_texts_of` gives it."""
        questions = self.questions.select_columns([*TEXT_COLUMNS, "source", "ranked", "scores", "images"])
        last: tuple[int, TokenizedQuestion] = -1, {}
        for row, better, worse in self._places.tolist():
            if row != last[0]:
                last = row, questions[row]
            yield pair_texts_of(last[1], better, worse)

    def cut(self) -> tuple[list[str], list[int]]:
        """Tell what `cutoff_len` cuts of images, by the first such pair of a question; the tokens of every cut pair."""
        longest = self.questions.select_columns(["length"]).with_format("arrow")[:]["length"].to_numpy()
        faults: dict[int, str] = {}
        lengths = []
        for place in np.flatnonzero(longest[self._places[:, 0]] > self.cutoff_len).tolist():
            row, *pair = map(int, self._places[place])
            question = self._question(row)
            length = max(map(len, question["prompts"])) + max(len(question["answer_ids"][at]) for at in pair)
            if length <= self.cutoff_len:
                continue
            lengths.append(length)
            if row not in faults and (fault := cut_media(question, self[place], self.cutoff_len, self.media_ids)):
                faults[row] = fault
        return list(faults.values()), lengths

    def _question(self, row: int) -> TokenizedQuestion:
        if self._last is None or self._last[0] != row:
            self._last = row, self.questions[row]
        return self._last[1]


def pairs_to_train(dataset: Any, choice: PairChoice, cutoff_len: int, media_ids: set[int]) -> Any:
    """Return the `QuestionPairs` of a tokenized dataset; of one that is streamed the collator checks the pairs.

    Raises:
        UniDPOError: it was tokenized for another loss, makes no pair, or `cutoff_len` cuts image tokens.
    """
    if not hasattr(dataset, "__len__"):
        return dataset
    if not {*QUESTION_COLUMNS} <= {*dataset.column_names}:
        raise UniDPOError(
            "the data under tokenized_path has no scores: it was tokenized for another loss, or by an earlier version. "
            "Name another tokenized_path, or delete that folder, and tokenize with pref_loss: uni_dpo"
        )
    pairs = QuestionPairs(dataset, choice, cutoff_len, media_ids)
    faults, cut = pairs.cut()
    if faults:
        raise UniDPOError(cut_media_message(faults))
    if cut:
        logger.warning_rank0(
            f"cutoff_len {cutoff_len} cuts the texts of {len(cut):,} of {len(pairs):,} pairs; the longest has "
            f"{max(cut):,} tokens"
        )
    return pairs


def cut_media_message(faults: list[str]) -> str:
    """Say which rows lose image tokens, how many they are, and what to do."""
    shown = "\n".join(f"  {fault}" for fault in faults[:20])
    return (
        f"cutoff_len cuts image tokens from {len(faults)} pairs, which would stop the training midway:\n{shown}\n"
        "raise cutoff_len, or lower image_max_pixels"
    )


POOL_BATCHES = 50
"""Batches among whose questions those of like length are put together."""


def as_bits(numbers: list[float]) -> Tensor:
    """Return numbers as a batch carries them: DeepSpeed rounds floats, so that these are float32's bits in int32."""
    return torch.tensor(numbers, dtype=torch.float32).view(torch.int32)


def take_pair(batch: Any, name: str) -> tuple[Tensor, Tensor] | None:
    """Remove `as_bits` from a batch and return those of the chosen and of the rejected answers, float32 (n,) each."""
    if name not in batch:
        return None
    chosen, rejected = batch.pop(name).view(torch.float32).chunk(2)
    return chosen, rejected


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
