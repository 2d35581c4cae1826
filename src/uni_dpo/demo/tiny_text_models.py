"""Text models of 0.2 million random weights, made on the spot: one that writes, and two that rate what was written."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from uni_dpo.demo.tiny_model import CORPUS, INSTRUCT_TEMPLATE, train_tokenizer

STEP_TOKEN = "<extra_0>"
"""Closes a step, as in Qwen2.5-Math-PRM."""

Kind = Literal["writer", "reward_model", "process_reward"]


def write_tiny_text_model(
    folder: str | Path, kind: Kind, *, seed: int = 0, corpus: Iterable[str] = CORPUS, spread: float = 0.02
) -> Path:
    """Write a Qwen2 and its tokenizer, with the step token and an instruct template, to `folder` and return it.

    Args:
        folder: created if missing.
        kind: a causal model, a sequence classifier with one label, or a token classifier with two.
        seed: of the random weights.
        corpus: text whose words the tokenizer learns; any other text is spelt in bytes.
        spread: standard deviation of the weights.
    """
    import torch
    from transformers import (
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen2ForSequenceClassification,
        Qwen2ForTokenClassification,
    )

    architectures = {
        "writer": (Qwen2ForCausalLM, {}),
        "reward_model": (Qwen2ForSequenceClassification, {"num_labels": 1}),
        "process_reward": (Qwen2ForTokenClassification, {"num_labels": 2}),
    }
    folder = Path(folder)
    tokenizer = train_tokenizer(corpus)
    tokenizer.add_tokens([STEP_TOKEN], special_tokens=True)
    tokenizer.chat_template = INSTRUCT_TEMPLATE
    architecture, labels = architectures[kind]
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=spread,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **labels,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        architecture(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
