"""Reward models that are sequence classifiers with one label, as TRL and most published text reward models are."""

from collections.abc import Sequence

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from uni_dpo.errors import UniDPOError
from uni_dpo.models.rewards.checkpoints import RewardCheckpoint, RewardModelOptions
from uni_dpo.models.rewards.conversation import Conversation


class SequenceClassifier:
    """See `RewardModel`. The conversation is laid out by the chat template.

    The rating is the one logit; of a model with code of its own that returns a `score` (as ArmoRM does, which
    mixes several logits into one), it is that score.
    """

    def __init__(self, checkpoint: RewardCheckpoint, options: RewardModelOptions) -> None:
        trust = {"trust_remote_code": options.trust_remote_code}
        dtype = "auto" if options.dtype == "auto" else getattr(torch, options.dtype)
        self.name = checkpoint.base
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint.base, **trust)
        if self.tokenizer.chat_template is None:
            raise UniDPOError(f"{self.name}: its tokenizer has no chat template, so how it reads a turn is unknown")
        self.tokenizer.padding_side = "right"
        self.model = AutoModelForSequenceClassification.from_pretrained(checkpoint.base, dtype=dtype, **trust).eval()
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.inference_mode()
    def rate(self, conversations: Sequence[Conversation]) -> list[float]:
        """See `RewardModel.rate`.

        Raises:
            UniDPOError: a conversation has images, which no classifier of the library sees.
        """
        texts = [self._laid_out(conversation) for conversation in conversations]
        # Without a padding token nothing tells where a shorter conversation ends: one at a time then.
        size = len(texts) if self.tokenizer.pad_token_id is not None else 1
        return [rating for start in range(0, len(texts), size) for rating in self._rate(texts[start : start + size])]

    def _rate(self, texts: list[str]) -> list[float]:
        inputs = self.tokenizer(texts, add_special_tokens=False, padding=len(texts) > 1, return_tensors="pt")
        output = self.model(**inputs.to(self.model.device))
        scores = getattr(output, "score", None)
        scores = output.logits if scores is None else scores
        if scores.numel() != len(texts):
            raise UniDPOError(f"{self.name}: gives {tuple(scores.shape)} for {len(texts)} answers, not one score each")
        ratings: list[float] = scores.reshape(-1).float().tolist()
        return ratings

    def _laid_out(self, conversation: Conversation) -> str:
        if conversation.images:
            raise UniDPOError(
                f"{self.name}: a sequence classifier does not see images, and {conversation.instruction[:60]!r} has "
                f"{len(conversation.images)}; train a reward model with LlamaFactory's `stage: rm`"
            )
        system = [{"role": "system", "content": conversation.system}] if conversation.system else []
        messages = [*system, *conversation.messages()]
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False)
        return text
