"""Ratings by a sequence classifier against one unpadded forward pass each."""

from pathlib import Path

import pytest
import torch

from uni_dpo.errors import UniDPOError
from uni_dpo.scoring import Conversation, RewardModelOptions, load_reward_model


def test_ratings_do_not_depend_on_the_batch(classifier: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    conversations = [
        Conversation("Which digit?", "The digit is two."),
        Conversation("Which digit?", "two", system="Answer the question."),
        Conversation("one two", "three four five six seven", history=(("zero", "one"),)),
    ]
    ratings = load_reward_model(RewardModelOptions(classifier)).rate(conversations)
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    for conversation, rating in zip(conversations, ratings, strict=True):
        system = conversation.system or "You are a helpful assistant."
        turns = [("system", system), *((m["role"], m["content"]) for m in conversation.messages())]
        text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits
        assert rating == pytest.approx(float(expected), abs=1e-5)


def test_images_are_refused(classifier: Path) -> None:
    model = load_reward_model(RewardModelOptions(classifier))
    with pytest.raises(UniDPOError, match="does not see images"):
        model.rate([Conversation("<image>What?", "A dog.", ("dog.png",))])
