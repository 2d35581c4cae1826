"""The model that answers: what it is, how it is asked, and that it samples from what its log-probabilities say."""

import json
from pathlib import Path

import pytest

from uni_dpo.engine import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.online import OnlineConfig, RewardOptions
from uni_dpo.online.policy import check_model, load_model, media_tokens, plain_sampling, prompt_text


def config(model: Path | str) -> OnlineConfig:
    return OnlineConfig(str(model), "out", RewardOptions(function="exact"))


def test_the_kind_of_model_is_told_from_its_configuration(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    check_model(config(tiny_qwen2_vl))
    with pytest.raises(UniDPOError, match="'nowhere' cannot be loaded; there is no such folder here"):
        check_model(config("nowhere"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (tmp_path / "model.safetensors").write_bytes(b"\2" + bytes(7) + b"{}")
    with pytest.raises(UniDPOError, match="is a qwen2, no vision-language model"):
        check_model(config(tmp_path))


def test_a_checkpoints_habits_are_set_aside_while_it_samples(tiny_qwen2_vl: Path) -> None:
    """Transformers fills what a given `GenerationConfig` leaves open from the checkpoint's: `min_p` 1 is greedy."""
    import torch
    from transformers import GenerationConfig

    model, processor = load_model(config(tiny_qwen2_vl))
    model.generation_config.min_p = 1.0
    inputs = processor(text=["one two three"] * 8, return_tensors="pt")
    wanted = GenerationConfig(do_sample=True, max_new_tokens=4, eos_token_id=1, pad_token_id=0)
    torch.manual_seed(0)
    greedy = model.generate(**inputs, generation_config=wanted)
    assert len({tuple(row.tolist()) for row in greedy}) == 1
    with plain_sampling(model):
        sampled = model.generate(**inputs, generation_config=wanted)
    assert len({tuple(row.tolist()) for row in sampled}) > 1
    assert model.generation_config.min_p == 1.0


def test_images_stand_before_the_text_and_their_tokens_are_known(tiny_qwen2_vl: Path) -> None:
    model, processor = load_model(config(tiny_qwen2_vl))
    text = prompt_text(Question("a", "Which digit?", ("a.png", "b.png")), processor)
    token = processor.image_token
    assert text.count(token) == 2
    assert text.rindex(token) < text.index("Which digit?")
    assert model.config.image_token_id in media_tokens(model)
