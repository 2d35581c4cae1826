"""Reward models that are sequence classifiers with one label, as TRL and most published text reward models are."""

from collections.abc import Sequence

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from uni_dpo.errors import UniDPOError
from uni_dpo.scoring.conversation import Conversation
from uni_dpo.scoring.reward_models import RewardCheckpoint, RewardModelOptions


class SequenceClassifier:
    """See `RewardModel`. The rating is the one logit; the conversation is laid out by the chat template."""

    def __init__(self, checkpoint: RewardCheckpoint, options: RewardModelOptions) -> None:
        trust = {"trust_remote_code": options.trust_remote_code}
        dtype = "auto" if options.dtype == "auto" else getattr(torch, options.dtype)
        self.name = checkpoint.base
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint.base, **trust)
        if self.tokenizer.chat_template is None:
            raise UniDPOError(f"{self.name}: its tokenizer has no chat template, so how it reads a turn is unknown")
        self.tokenizer.padding_side = "right"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
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
        inputs = self.tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        logits = self.model(**inputs.to(self.model.device)).logits
        ratings: list[float] = logits[:, 0].float().tolist()
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
