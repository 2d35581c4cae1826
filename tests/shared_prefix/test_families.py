"""Which models are let in, and what is said to the others."""

import pytest
import torch
import transformers
from families import FAMILIES, IMAGE, TEXT_FAMILIES, tiny_model
from torch import nn

from uni_dpo.shared_prefix.families import image_token_id, keys_worth_a_token, output_head, unwrapped, why_not_shared


@pytest.mark.parametrize("family", FAMILIES)
def test_every_proved_family_is_shared(family: str) -> None:
    model = tiny_model(family)
    assert why_not_shared(model) is None
    assert image_token_id(model) == (None if family in TEXT_FAMILIES else IMAGE)


def test_an_unproved_family_is_named() -> None:
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=10)
    assert why_not_shared(transformers.GPT2LMHeadModel(config)) == "gpt2 models are not among those proved equal"


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("qwen3_next", "it has linear_attention layers"),
        ("gemma3n", "gemma3n models are not among those proved equal"),
    ],
)
def test_a_family_of_this_autumn_that_is_not_shared_is_named(family: str, reason: str) -> None:
    if family not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    model = torch.nn.Module()
    model.config = transformers.AutoConfig.for_model(family)
    assert why_not_shared(model) == reason


def test_attention_without_masks_is_named() -> None:
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    assert why_not_shared(model) == "flash_attention_2 takes no custom mask (flash_attn: sdpa does)"
    assert why_not_shared(model, "flex_attention") is None


def test_a_kind_of_layer_that_is_not_proved_is_named() -> None:
    model = tiny_model("qwen2")
    model.config.layer_types = ["full_attention", "linear_attention", "chunked_attention"]
    assert why_not_shared(model) == "it has chunked_attention and linear_attention layers"


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("final_logit_softcapping", 30.0, "it caps its logits behind the projection onto the vocabulary"),
        ("use_bidirectional_attention", True, "its text sees what follows it"),
    ],
)
def test_what_gemma_may_have_and_no_shared_sequence_has_is_named(setting: str, value: object, reason: str) -> None:
    model = tiny_model("gemma3")
    setattr(model.config.text_config, setting, value)
    assert why_not_shared(model) == reason


def test_gemma_4_as_an_encoder_is_named() -> None:
    model = tiny_model("gemma4")
    model.config.text_config.use_bidirectional_attention = "all"
    assert why_not_shared(model) == "its text sees what follows it"


def test_a_language_model_that_is_not_proved_behind_a_tower_is_named() -> None:
    model = tiny_model("internvl")
    model.config.text_config = transformers.GPT2Config()
    assert why_not_shared(model) == "gpt2 language models are not among those proved equal"


def test_a_replaced_forward_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(type(model), "forward", lambda self, **inputs: None)
    assert why_not_shared(model) == "another library replaced its forward pass"


def test_grouped_attention_is_named() -> None:
    """LlamaFactory's `shift_attn` leaves this mark."""
    model = tiny_model("llama")
    model.config.group_size_ratio = 0.25
    assert why_not_shared(model) == "shift_attn attends in groups"


def test_wrappers_are_looked_through() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_model("qwen2_vl")
    wrapped = nn.Module()
    wrapped.module = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert unwrapped(wrapped) is model
    assert output_head(wrapped) is model.lm_head
    assert why_not_shared(wrapped) is None


def test_a_token_is_worth_as_many_keys_as_its_linear_maps_cost() -> None:
    # Width 32, 4 heads of 8, 2 key-value heads, inner width 48: q and o 2·32·32, k and v 2·32·16, MLP 3·32·48.
    worth = (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) / (2 * 32)
    assert keys_worth_a_token(tiny_model("llama")) == worth
    # One of its three layers attends to keys.
    assert keys_worth_a_token(tiny_model("qwen3_5_text")) == 3 * worth
