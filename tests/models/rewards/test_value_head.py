"""Ratings by LlamaFactory's value head against a plain forward pass of one conversation at a time."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from uni_dpo.demo.digits import QUESTION, Digit
from uni_dpo.models.rewards import load_reward_model
from uni_dpo.models.rewards.options import Conversation, RewardModelOptions

TURN = "<|im_start|>{}\n{}<|im_end|>\n"
VISION = "<|vision_start|><|image_pad|><|vision_end|>"


def naive_rating(folder: Path, conversation: Conversation) -> float:
    """The rating from the checkpoint's two files and the template written out."""
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    head = load_file(folder / "value_head.safetensors")
    system = conversation.system or "You are a helpful assistant."
    turns = [("system", system), *((m["role"], m["content"]) for m in conversation.messages())]
    text = "".join(TURN.format(*turn) for turn in turns).replace("<image>", VISION)
    images = [Image.open(path).convert("RGB") for path in conversation.images]
    inputs = AutoProcessor.from_pretrained(folder)(text=[text], images=images or None, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1].double()
    return float(hidden @ head["v_head.summary.weight"][0].double() + head["v_head.summary.bias"][0].double())


def test_ratings_are_those_of_a_plain_forward_pass(value_head: Path, digits: dict[str, list[Digit]]) -> None:
    """One, no and two images, a system prompt, an earlier turn, several lengths, all in one batch."""
    images = [str(digit.image) for digit in digits["held_out"][:3]]
    conversations = [
        Conversation(f"<image>{QUESTION}", "The digit is two.", (images[0],)),
        Conversation("one two three", "four", system="Answer the question."),
        Conversation(
            f"<image>\n{QUESTION} <image>", "zero one two three four", (images[1], images[2]), "", (("A", "B"),)
        ),
    ]
    ratings = load_reward_model(RewardModelOptions(value_head)).rate(conversations)
    expected = [naive_rating(value_head, conversation) for conversation in conversations]
    assert ratings == pytest.approx(expected, abs=1e-4)
    assert max(ratings) - min(ratings) > 1e-3
