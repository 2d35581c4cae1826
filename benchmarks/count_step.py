"""A training step without weights: its products and its bytes, on PyTorch's meta device.

A meta tensor has a shape and no numbers. The modules of transformers, the loss of LlamaFactory and ours run on them,
forward and backward; PyTorch's counter adds up the products, and `LiveBytes` the storages that are alive.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from count_towers import image_features
from counters import ATTENTION, LiveBytes, flop_counter
from torch import Tensor, nn

from uni_dpo.shared_prefix.attention import added_mask
from uni_dpo.shared_prefix.families import (
    FULL,
    GRID_FAMILIES,
    MASKS_BY_NAME,
    family_of,
    looks_both_ways,
    text_config,
    vision_parameters,
)
from uni_dpo.shared_prefix.layout import ANSWER, PREFIX
from uni_dpo.shared_prefix.linear_attention import Regrouping, regroup

COUNTED = "counted"
TRAINED = {
    "llava_onevision": ("",),
    "glm4v": ("visual.embeddings", "visual.downsample", "visual.post_"),
}
"""What LlamaFactory trains of a family's vision although it freezes towers and projectors, by parts of names."""

VARIANTS = ("stock", "stock + Liger", "ours")


@dataclass(frozen=True)
class Step:
    """What a step consists of; lengths in tokens."""

    questions: int
    answers: int
    image: int
    words: int
    answer: int
    lora: int = 0
    checkpointing: bool = False
    reference: bool = True

    @property
    def pairs(self) -> int:
        """All pairs of all questions."""
        return self.questions * self.answers * (self.answers - 1) // 2

    @property
    def prompt(self) -> int:
        """Image and words, with the two tokens around an image."""
        return self.words + (self.image + 2 if self.image else 0)


def build(config: dict[str, Any], dtype: torch.dtype, lora: int = 0) -> tuple[nn.Module, nn.Module]:
    """A policy with a frozen vision tower, LlamaFactory's default, and its reference, on the meta device."""
    import transformers
    from transformers import AttentionInterface, AutoConfig

    AttentionInterface.register(COUNTED, counted_attention)
    described = AutoConfig.for_model(**copy.deepcopy(config))
    vision = getattr(described, "vision_config", None)
    kind = transformers.AutoModelForCausalLM if vision is None else transformers.AutoModelForImageTextToText
    with torch.device("meta"):
        torch.set_default_dtype(dtype)
        policy = kind.from_config(described)
        torch.set_default_dtype(torch.float32)
    for part in (policy.config, policy.config.get_text_config(), vision and policy.config.vision_config):
        if part is not None:
            part._attn_implementation = COUNTED
    reference = copy.deepcopy(policy).requires_grad_(False).eval()
    trained = TRAINED.get(config["model_type"], ())
    for name, parameter in vision_parameters(policy).items():
        parameter.requires_grad_(any(part in name for part in trained))
    if lora:
        from peft import LoraConfig, get_peft_model

        targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
        with torch.device("meta"):
            policy = get_peft_model(policy, LoraConfig(r=lora, target_modules=targets), autocast_adapter_dtype=False)
        policy = policy.get_base_model()
    return policy, reference


def counted_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """What the attention of transformers, and ours of answers behind a prompt, runs on a CPU.

    Without a mask, heads share their keys; with one, which has the rows of the answers alone, keys are repeated.
    """
    scale, is_causal = settings.get("scaling"), settings.get("is_causal")
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    if attention_mask is None:
        return ATTENTION(query, key, value, 0.0, causal, scale=scale)[0].transpose(1, 2).contiguous(), None
    prompt = query.shape[2] - attention_mask.shape[2]
    before = ATTENTION(*(part[:, :, :prompt] for part in (query, key, value)), 0.0, True, scale=scale)[0]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    added = added_mask(attention_mask, query.dtype)
    after = ATTENTION(query[:, :, prompt:], key, value, 0.0, False, attn_mask=added, scale=scale)[0]
    return torch.cat([part.transpose(1, 2) for part in (before, after)], 1), None


def hidden_states(
    model: nn.Module,
    features: Tensor | None,
    rows: int,
    length: int,
    image: int,
    mask: Any,
    regrouping: dict[str, Regrouping] | None = None,
) -> Tensor:
    """Run the language model over `rows` sequences of `length` tokens, `image` of which are an image's."""
    text = getattr(model.model, "language_model", model.model)
    words = torch.empty(rows, length, device="meta", dtype=torch.long)
    embedded = text.embed_tokens(words)
    if features is not None:
        place = torch.empty(rows, length, 1, device="meta", dtype=torch.bool).expand_as(embedded)
        embedded = embedded.masked_scatter(place, features.to(embedded.dtype))
    positions = torch.empty(rows, length, device="meta", dtype=torch.long)
    if family_of(model) in GRID_FAMILIES:
        positions = positions.expand(3, rows, length)
    if mask is not None and text_config(model).model_type in MASKS_BY_NAME:
        whole = torch.empty(rows, 1, length, length, device="meta", dtype=torch.bool)
        both_ways = looks_both_ways(model) if image else ()
        mask = {"full_attention": whole if FULL in both_ways else mask, "sliding_attention": whole}
    if regrouping:  # linear layers take no mask, and on the meta device none could be looked at for padding
        text._update_linear_attn_mask = lambda *_: None
    inputs = {"inputs_embeds": embedded, "position_ids": positions, "attention_mask": mask, **(regrouping or {})}
    if getattr(text, "hidden_size_per_layer_input", 0):
        inputs["per_layer_inputs"] = text.get_per_layer_inputs(words, None)
    return text(**inputs, use_cache=False).last_hidden_state


def regrouping_of(model: nn.Module, step: Step, length: int) -> dict[str, Regrouping]:
    """What linear layers, where the model has any, are told of questions whose answers share their prompt."""
    segments = torch.zeros(step.questions, length, dtype=torch.int16)
    segments[:, : step.prompt] = PREFIX
    numbers = torch.arange(step.questions * step.answers).view(step.questions, -1).repeat_interleave(step.answer, 1)
    segments[:, step.prompt : step.prompt + numbers.shape[1]] = ANSWER + numbers
    found = {}
    for name, known in regroup(model, segments).items():
        fields = {key: value.to("meta") for key, value in vars(known).items() if isinstance(value, Tensor)}
        found[name] = replace(known, **fields)
    return found


def stock_logps(model: nn.Module, step: Step) -> tuple[Tensor, Tensor]:
    """LlamaFactory's `concatenated_forward`: two sequences per pair, all logits; their log-probabilities and logits."""
    from llamafactory.train.trainer_utils import get_batch_logps

    rows, length = 2 * step.pairs, step.prompt + step.answer
    features = image_features(model, rows, step.image)
    hidden = hidden_states(model, features, rows, length, step.image, None)
    logits = model.lm_head(hidden).to(torch.float32)  # type: ignore[operator]
    labels = torch.empty(rows, length, device="meta", dtype=torch.long)
    return get_batch_logps(logits, labels)[0], logits


def our_logps(model: nn.Module, step: Step, features: Tensor | None, mean_logits: bool) -> Tensor:
    """`pair_scores` of questions whose answers share their prompt."""
    from uni_dpo.logprobs import CHUNK_BYTES, KEPT_BYTES, _LinearLogps

    rows, length = step.questions, -(-(step.prompt + step.answers * step.answer) // 8) * 8
    mask = torch.empty(rows, 1, length - step.prompt, length, device="meta", dtype=torch.bool)
    hidden = hidden_states(model, features, rows, length, step.image, mask, regrouping_of(model, step, length))
    head, sequences = model.lm_head, rows * step.answers
    if mean_logits:
        with torch.no_grad():
            head(hidden.new_empty(sequences, hidden.shape[-1])).float().mean(-1)  # type: ignore[operator]
    scored = torch.empty(sequences * step.answer, device="meta", dtype=torch.long)
    kept = KEPT_BYTES if torch.is_grad_enabled() else 0  # `linear_logps` asks for autocast, which meta tensors lack
    logps = _LinearLogps.apply(hidden.flatten(0, -2)[scored], head.weight, None, scored, CHUNK_BYTES, kept)
    return logps.view(sequences, step.answer).sum(1)


def run(policy: nn.Module, reference: nn.Module, step: Step, variant: str) -> None:
    """The loss of a step, and its gradients."""
    place = torch.empty(step.pairs, device="meta", dtype=torch.long)
    if variant == "ours":
        features = image_features(policy, step.questions, step.image)
        logps = our_logps(policy, step, features, mean_logits=True)
        with torch.no_grad():
            if any(parameter.requires_grad for parameter in vision_parameters(policy).values()):
                features = image_features(reference, step.questions, step.image)
            theirs = our_logps(reference, step, features, mean_logits=False) if step.reference else logps.detach()
        chosen, rejected, their_chosen, their_rejected = (part[place] for part in (logps, logps, theirs, theirs))
        logits = None
    else:
        logps, logits = stock_logps(policy, step)
        with torch.no_grad():
            theirs = stock_logps(reference, step)[0] if step.reference else logps.detach()
        (chosen, rejected), (their_chosen, their_rejected) = logps.chunk(2), theirs.chunk(2)
    loss = -nn.functional.logsigmoid(0.1 * ((chosen - rejected) - (their_chosen - their_rejected))).mean()
    del logits, theirs
    loss.backward()


def count(config: dict[str, Any], step: Step, variant: str, dtype: torch.dtype = torch.bfloat16) -> tuple[int, int]:
    """The floating-point operations of a step, and the bytes that it takes above the weights, gradients included."""
    policy, reference = build(config, dtype, step.lora)
    if step.checkpointing:
        # As LlamaFactory does: re-entrant, and not for what is frozen.
        text = policy.model.language_model  # type: ignore[union-attr]
        text.gradient_checkpointing_enable({"use_reentrant": True})  # type: ignore[operator]
        policy.train()
        if step.lora:
            text.embed_tokens.register_forward_hook(lambda *given: given[-1].requires_grad_())  # type: ignore[operator, union-attr]
    with _kernels_of(variant, policy), flop_counter() as flops, LiveBytes(policy, reference) as memory:
        run(policy, reference, step, variant)
    return flops.get_total_flops(), memory.peak


@contextmanager
def _kernels_of(variant: str, policy: nn.Module) -> Iterator[None]:
    """For Liger, norms and gates that keep for the backward pass what its kernels keep."""
    if variant != "stock + Liger":
        yield
        return
    layer = policy.model.language_model.layers[0]  # type: ignore[index, union-attr]
    norm, gate = type(layer.input_layernorm), type(layer.mlp)
    before = norm.forward, gate.forward
    norm.forward = lambda self, hidden: _LigerNorm.apply(hidden, self.weight)  # type: ignore[method-assign]
    gate.forward = lambda self, x: self.down_proj(_LigerGate.apply(self.gate_proj(x), self.up_proj(x)))  # type: ignore[method-assign]
    try:
        yield
    finally:
        norm.forward, gate.forward = before  # type: ignore[method-assign]


class _LigerNorm(torch.autograd.Function):
    """Keeps its input and one number per row."""

    @staticmethod
    def forward(ctx, hidden, weight):  # type: ignore[no-untyped-def]  # torch's signature
        ctx.save_for_backward(hidden, weight, hidden.new_empty(hidden.shape[:-1], dtype=torch.float32))
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]  # torch's signature
        hidden, weight, _ = ctx.saved_tensors
        return torch.empty_like(hidden), torch.empty_like(weight)


class _LigerGate(torch.autograd.Function):
    """Keeps its two inputs, over which it writes their gradients."""

    @staticmethod
    def forward(ctx, gate, up):  # type: ignore[no-untyped-def]  # torch's signature
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]  # torch's signature
        return ctx.saved_tensors
