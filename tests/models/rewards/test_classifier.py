"""Ratings by a sequence classifier against one unpadded forward pass each."""

from pathlib import Path

import pytest
import torch

from uni_dpo.errors import UniDPOError
from uni_dpo.models.rewards import load_reward_model
from uni_dpo.models.rewards.options import Conversation, RewardModelOptions


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
    with pytest.raises(UniDPOError, match="sees no images or videos"):
        model.rate([Conversation("<image>What?", "A dog.", ("dog.png",))])


def test_without_a_padding_token_conversations_are_rated_one_by_one(classifier: Path) -> None:
    conversations = [Conversation("Which digit?", "two"), Conversation("one two", "three four five six seven")]
    model = load_reward_model(RewardModelOptions(classifier))
    padded = model.rate(conversations)
    model.tokenizer.pad_token = None
    model.model.config.pad_token_id = None
    assert model.rate(conversations) == pytest.approx(padded, abs=1e-5)


OWN_CODE = """
from dataclasses import dataclass
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


@dataclass
class Output(ModelOutput):
    logits: torch.Tensor = None
    score: torch.Tensor = None


class MixtureConfig(PretrainedConfig):
    model_type = "mixture"


class Mixture(PreTrainedModel):
    config_class = MixtureConfig

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.tensor([2.0, 0.5]))
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids, attention_mask, **_):
        logits = torch.stack([attention_mask.sum(1), input_ids.gt(5).mul(attention_mask).sum(1)], 1).float()
        return Output(logits=logits, score=logits @ self.weight)
"""


def test_a_model_with_code_of_its_own_rates_by_its_score(classifier: Path, tmp_path: Path) -> None:
    """Two logits, tokens and ordinary tokens, mixed by 2 and ½; the code runs only where the user says so."""
    import json
    import shutil

    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    folder = shutil.copytree(classifier, tmp_path / "mixture")
    (folder / "own_code.py").write_text(OWN_CODE)
    save_file({"weight": torch.tensor([2.0, 0.5])}, folder / "model.safetensors", metadata={"format": "pt"})
    own = {"AutoConfig": "own_code.MixtureConfig", "AutoModelForSequenceClassification": "own_code.Mixture"}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "mixture", "architectures": ["Mixture"], "auto_map": own})
    )
    with pytest.raises(
        UniDPOError, match=r"code of its own \(own_code.Mixture\), which runs only with trust_remote_code"
    ):
        load_reward_model(RewardModelOptions(folder))
    conversations = [Conversation("Which digit?", "two"), Conversation("one two", "three four five six seven")]
    ratings = load_reward_model(RewardModelOptions(folder, trust_remote_code=True)).rate(conversations)
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    for conversation, rating in zip(conversations, ratings, strict=True):
        tokens = tokenizer.apply_chat_template(conversation.messages(), tokenize=True, return_dict=False)
        assert rating == 2.0 * len(tokens) + 0.5 * sum(token > 5 for token in tokens)
