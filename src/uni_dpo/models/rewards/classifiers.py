"""Reward models that are classifiers: of a whole answer, as most published text reward models are, or of its steps.

A process reward model is a token classifier that is read at the token which closes each step.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from uni_dpo.errors import UniDPOError
from uni_dpo.models.loading import best_device, find_dtype, load_class, one_line
from uni_dpo.models.rewards.options import Conversation, ProcessModelOptions, RewardCheckpoint, RewardModelOptions
from uni_dpo.models.rewards.questions import shared_states

ANSWER_PLACE = "\N{LEFT CEILING}answer\N{RIGHT CEILING}"
"""Stands for the answer in the chat template, to find where the answer begins; no template and no question has it."""


class SequenceClassifier:
    """See `RewardModel`. The conversation is laid out by the chat template.

    The rating is the one logit; of a model with code of its own that returns a `score` (as ArmoRM does, which
    mixes several logits into one), it is that score.
    """

    def __init__(self, checkpoint: RewardCheckpoint, options: RewardModelOptions) -> None:
        trust = {"trust_remote_code": options.trust_remote_code}
        self.name = checkpoint.base
        with one_line(checkpoint.base, "tokenizer of "):
            self.tokenizer = AutoTokenizer.from_pretrained(checkpoint.base, **trust)
        if self.tokenizer.chat_template is None:
            raise UniDPOError(f"{self.name}: its tokenizer has no chat template, so how it reads a turn is unknown")
        self.tokenizer.padding_side = "right"
        self.model = _load("AutoModelForSequenceClassification", checkpoint.base, options.dtype, trust)
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    @torch.inference_mode()
    def rate(self, conversations: Sequence[Conversation]) -> list[float]:
        """See `RewardModel.rate`.

        Raises:
            UniDPOError: a conversation has images, which no classifier of the library sees.
        """
        texts = [self._laid_out(conversation) for conversation in conversations]
        # Without a padding token nothing tells where a shorter conversation ends: one at a time then.
        size = len(texts) if self.tokenizer.pad_token_id is not None else 1
        asked = [conversation.question() for conversation in conversations]
        parts = (slice(start, start + size) for start in range(0, len(texts), size))
        return [rating for part in parts for rating in self._rate(texts[part], asked[part])]

    def _rate(self, texts: list[str], questions: Sequence[tuple[str, ...]]) -> list[float]:
        inputs = self.tokenizer(texts, add_special_tokens=False, padding=len(texts) > 1, return_tensors="pt")
        inputs = dict(inputs.to(self.model.device))
        states = _shared_states(self.model, inputs, questions)
        if states is None:
            output = self.model(**inputs)
            scores = getattr(output, "score", None)
            scores = output.logits if scores is None else scores
        else:
            scores = self.model.score(states[torch.arange(len(texts)), self._last(inputs["input_ids"])])
        if scores.numel() != len(texts):
            raise UniDPOError(f"{self.name}: gives {tuple(scores.shape)} for {len(texts)} answers, not one score each")
        ratings: list[float] = scores.reshape(-1).float().tolist()
        return ratings

    def _last(self, ids: Tensor) -> Tensor:
        """Where a conversation is read, (rows,): at its last token that is no padding token, as in transformers."""
        column = torch.arange(ids.shape[1], device=ids.device)
        return (column * (ids != self.model.config.pad_token_id)).argmax(1)

    def _laid_out(self, conversation: Conversation) -> str:
        if shown := len(conversation.images) + len(conversation.videos):
            raise UniDPOError(
                f"{self.name}: a sequence classifier sees no images or videos; {conversation.instruction[:60]!r} has "
                f"{shown}; train a reward model with LlamaFactory's `stage: rm`"
            )
        system = [{"role": "system", "content": conversation.system}] if conversation.system else []
        messages = [*system, *conversation.messages()]
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False)
        return text


class StepClassifier:
    """Says of every step of an answer how probably it is right.

    P(right) is the second label's share in the softmax over the two at the step token.

    The prompt and every step are tokenized on their own, so that where the step tokens are is known and not
    searched for: an answer that spells the step token out gains nothing by it. What a template puts behind the
    answer is left off, since a causal model does not see it from a step token.
    """

    def __init__(self, loader: str, options: ProcessModelOptions) -> None:
        trust = {"trust_remote_code": options.trust_remote_code}
        self.options = options
        with one_line(options.model, "tokenizer of "):
            self.tokenizer = AutoTokenizer.from_pretrained(options.model, **trust)
        if options.layout == "chat" and self.tokenizer.chat_template is None:
            raise UniDPOError(f"{options.model}: its tokenizer has no chat template; is its layout plain?")
        self.step_ids = self._ids(options.step_token)
        self.model = _load(loader, str(options.model), options.dtype, trust)

    @torch.inference_mode()
    def rate_steps(self, solutions: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """Return P(right) in [0, 1] of every step, from one forward pass.

        Args:
            solutions: question and steps of each answer; no answer is without steps.
        """
        encoded = [self.encode(question, steps) for question, steps in solutions]
        rows = [torch.tensor(tokens) for tokens, _ in encoded]
        ids, mask = (pad_sequence(each, batch_first=True) for each in (rows, [*map(torch.ones_like, rows)]))
        inputs = {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}
        states = _shared_states(self.model, inputs, [question for question, _ in solutions])
        logits = self.model(**inputs, use_cache=False)[0] if states is None else self.model.score(states)
        if logits.shape[:2] != ids.shape or logits.shape[2] != 2:
            raise UniDPOError(
                f"{self.options.model}: gives {tuple(logits.shape)} for {tuple(ids.shape)} tokens, not 2 each"
            )
        right = logits.double().softmax(-1)[:, :, 1].cpu()
        return [row[places].tolist() for row, (_, places) in zip(right, encoded, strict=True)]

    def encode(self, question: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return tokens of question and steps, and the places of the step tokens among them."""
        tokens = self._prompt(question)
        places = []
        for step in steps:
            tokens += self._ids(step) + self.step_ids
            places.append(len(tokens) - 1)
        return tokens, places

    def _prompt(self, question: str) -> list[int]:
        if self.options.layout == "plain":
            start = self.tokenizer.bos_token_id
            return ([] if start is None else [start]) + self._ids(question)
        system = [{"role": "system", "content": self.options.system}] if self.options.system else []
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": ANSWER_PLACE}]
        text: str = self.tokenizer.apply_chat_template([*system, *turns], tokenize=False)
        return self._ids(text.rpartition(ANSWER_PLACE)[0])

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _shared_states(model: Any, inputs: dict[str, Any], questions: Sequence[Hashable]) -> Tensor | None:
    """See `shared_states`; None too for a model whose head is not a linear map of each token, as the library's are."""
    return shared_states(model, inputs, questions) if isinstance(getattr(model, "score", None), nn.Linear) else None


def _load(loader: str, folder: str, dtype: str, trust: Mapping[str, Any]) -> Any:
    model = load_class(getattr(transformers, loader), folder, dtype=find_dtype(dtype, "cpu"), **trust)
    return model.to(best_device()).eval()
