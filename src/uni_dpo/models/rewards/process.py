"""Process reward models: token classifiers that are read at the token which closes each step."""

from collections.abc import Sequence

import torch
import transformers
from transformers import AutoTokenizer

from uni_dpo.errors import UniDPOError
from uni_dpo.models.rewards.process_checkpoints import ProcessModelOptions

ANSWER_PLACE = "\N{LEFT CEILING}answer\N{RIGHT CEILING}"
"""Stands for the answer in the chat template, to find where the answer begins; no template and no question has it."""


class StepClassifier:
    """See `ProcessModel`. P(right) is the second label's share in the softmax over the two at the step token.

    The prompt and every step are tokenized on their own, so that where the step tokens are is known and not
    searched for: an answer that spells the step token out gains nothing by it. What a template puts behind the
    answer is left off, since a causal model does not see it from a step token.
    """

    def __init__(self, loader: str, options: ProcessModelOptions) -> None:
        trust = {"trust_remote_code": options.trust_remote_code}
        dtype = "auto" if options.dtype == "auto" else getattr(torch, options.dtype)
        self.options = options
        self.tokenizer = AutoTokenizer.from_pretrained(options.model, **trust)
        if options.layout == "chat" and self.tokenizer.chat_template is None:
            raise UniDPOError(f"{options.model}: its tokenizer has no chat template; is its layout plain?")
        self.step_ids = self._ids(options.step_token)
        self.model = getattr(transformers, loader).from_pretrained(options.model, dtype=dtype, **trust).eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.inference_mode()
    def rate_steps(self, solutions: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """See `ProcessModel.rate_steps`."""
        encoded = [self.encode(question, steps) for question, steps in solutions]
        longest = max(len(ids) for ids, _ in encoded)
        ids = torch.zeros(len(encoded), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (tokens, _) in enumerate(encoded):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        device = self.model.device
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)[0]
        if logits.shape[:2] != ids.shape or logits.shape[2] != 2:
            raise UniDPOError(
                f"{self.options.model}: gives {tuple(logits.shape)} for {tuple(ids.shape)} tokens, not 2 each"
            )
        right = logits.double().softmax(-1)[:, :, 1].cpu()
        return [row[places].tolist() for row, (_, places) in zip(right, encoded, strict=True)]

    def encode(self, question: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """Tokens of question and steps, and the places of the step tokens among them."""
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
