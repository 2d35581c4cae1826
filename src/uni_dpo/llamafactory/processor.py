"""Tokenizing scored rows: a question with all its answers, each once."""

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from llamafactory.data.processor import PairwiseDatasetProcessor
from llamafactory.extras.constants import IGNORE_INDEX

from uni_dpo.data.ranking import ALL_PAIRS, PairChoice
from uni_dpo.llamafactory.question_pairs import (
    MEDIA,
    QUESTION_COLUMNS,
    REJECTED_IMAGES,
    TokenizedQuestion,
    cut_media,
    drawn_pairs,
    pair_feature,
    pair_texts_of,
)
from uni_dpo.llamafactory.run_context import current_run


@dataclass
class ScoredPairwiseProcessor(PairwiseDatasetProcessor):
    """LlamaFactory's pairwise tokenization; where there are scores, of questions with all their answers.

    Attributes:
        choice: which pairs a streamed question gives, since a stream has no rows to look up.
    """

    choice: PairChoice = field(default_factory=lambda: current_run().pair_choice)

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenize a batch of aligned examples to `QUESTION_COLUMNS`, or to pairs where the data are streamed.

        What upstream drops is dropped, and so are ranked answers of which no two could make a pair.
        """
        if "_ranked" not in examples:
            return self._named(examples) if "_source" in examples else super().preprocess_dataset(examples)
        whole = copy.copy(self)
        whole.data_args = copy.copy(self.data_args)
        whole.data_args.cutoff_len = 2**30
        questions = [question for row in _rows(examples) if (question := whole.question(row)) is not None]
        if not self.data_args.streaming:
            return {name: [question[name] for question in questions] for name in QUESTION_COLUMNS}
        media_ids = media_token_ids(self.template, self.tokenizer, self.processor)
        pairs = [
            pair | {"fault": cut_media(question, pair, self.data_args.cutoff_len, media_ids)}
            for question in questions
            for better, worse in drawn_pairs(question, self.choice)
            for pair in [pair_feature(question, better, worse, self.data_args.cutoff_len)]
        ]
        return {name: [pair[name] for pair in pairs] for name in (pairs[0] if pairs else ())}

    def _named(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Pairs as LlamaFactory tokenizes them for another loss, with what the ledger knows them by."""
        inputs: dict[str, list[Any]] = defaultdict(list)
        for example in _rows(examples):
            encoded = self._encoded(example)
            if not encoded:
                continue
            answers = [answer["content"] for answer in example["_response"]]
            known = {"source": example["_source"], "ranked": False, "scores": example["_scores"], "answers": answers}
            texts = pair_texts_of({**known, "question": question_text(example["_prompt"])}, 0, 1)
            texts |= {REJECTED_IMAGES: example[f"_{REJECTED_IMAGES}"]}
            for column, values in ({name: [value] for name, value in texts.items()} | encoded).items():
                inputs[column].extend(values)
        return inputs

    def question(self, example: dict[str, Any]) -> TokenizedQuestion | None:
        """Return the tokens of one example's prompt and of each of its answers, the latter encoded two by two."""
        answers = example["_response"]
        contents = [answer["content"] for answer in answers]
        same_as = [contents.index(content) for content in contents]
        if len(answers) < 2 or (example["_ranked"] and not ALL_PAIRS.pairs(example["_scores"], same_as)):
            return None
        prompts: list[list[int]] = []
        tokens: list[list[int]] = []
        other = example.get(f"_{REJECTED_IMAGES}")
        for at in range(0, len(answers), 2):
            two = [answers[at], answers[min(at + 1, len(answers) - 1)]]
            encoded = self._encoded({**example, "_response": two})
            if not encoded:
                return None
            prompts = [_prompt(encoded, side) for side in ("chosen", "rejected")[: 2 if other else 1]]
            for side, prompt in zip(("chosen", "rejected"), (prompts[0], prompts[-1]), strict=True):
                tokens.append(encoded[f"{side}_input_ids"][0][len(prompt) :])
        answer_ids = tokens[: len(answers)]
        known = {
            "prompts": prompts,
            "answer_ids": answer_ids,
            "same_as": same_as,
            "scores": example["_scores"],
            "ranked": example["_ranked"],
            "length": max(map(len, prompts)) + max(map(len, answer_ids)),
            "source": example["_source"],
            "question": question_text(example["_prompt"]),
            "answers": contents,
        }
        return known | {name: example[f"_{name}"] for name in MEDIA} | {REJECTED_IMAGES: other}

    def _encoded(self, example: dict[str, Any]) -> dict[str, list[Any]]:
        """One example as LlamaFactory tokenizes a pair, each side with the images that it sees."""
        encoded = super().preprocess_dataset({name: [value] for name, value in example.items()})
        if encoded and (other := example.get(f"_{REJECTED_IMAGES}")):
            rejected = super().preprocess_dataset(
                {name: [value] for name, value in {**example, "_images": other}.items()}
            )
            encoded |= {name: value for name, value in rejected.items() if name.startswith("rejected")}
        return encoded

    def print_data_example(self, example: dict[str, Any]) -> None:
        """Print a pair, the first two answers of a question."""
        super().print_data_example(pair_feature(example, 0, 1, 2**30) if "prompts" in example else example)


def _rows(examples: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    return ({name: column[at] for name, column in examples.items()} for at in range(len(examples["_prompt"])))


def _prompt(encoded: dict[str, list[Any]], side: str) -> list[int]:
    """The tokens of one side before its answer."""
    prompt: list[int] = encoded[f"{side}_input_ids"][0][: encoded[f"{side}_labels"][0].count(IGNORE_INDEX)]
    return prompt


def question_text(turns: list[dict[str, str]]) -> str:
    """Return what is asked, with the turns before it."""
    return "\n\n".join(turn["content"] for turn in turns)


def media_token_ids(template: Any, tokenizer: Any, processor: Any) -> set[int]:
    """Return the tokens that stand for parts of images, videos and audios; InternVL's are not those of its template."""
    owners, kinds = (template.mm_plugin, processor), ("image_token", "video_token", "audio_token")
    tokens = [getattr(owner, kind, None) for owner in owners for kind in kinds]
    found = {tokenizer.convert_tokens_to_ids(token) for token in tokens if token}
    return found - {None, tokenizer.unk_token_id}
