"""The prompt's state in each answer, layer by layer; `make test`, `make test-head` and `make test-trl` run it, since
transformers keeps the kernels of linear attention elsewhere in each. An older transformers has no such layers.
"""

import copy
import sys
from typing import Any

import pytest
import torch
import transformers
from families import HYBRID_FAMILIES, MIXED, Pair, pair_batch, share_prefix, tiny_model
from test_forward import assert_equal_steps, difference, ordinary, preference_loss, run, shared
from torch import Tensor, nn

from uni_dpo.shared_prefix.families import (
    FLEX_ATTENTION,
    image_token_id,
    linear_attentions,
    linear_kernels,
    why_not_shared,
)
from uni_dpo.shared_prefix.forward import pair_scores
from uni_dpo.shared_prefix.linear_attention import Regrouping, regrouped

pytestmark = pytest.mark.skipif(
    "qwen3_5" not in transformers.CONFIG_MAPPING, reason=f"transformers {transformers.__version__} has no qwen3_5"
)


def segments_of(*sequences: tuple[int, ...], length: int) -> Tensor:
    """Segments of sequences given as lengths: the prompt's, then each answer's."""
    rows, number = [], 0
    for prompt, *answers in sequences:
        row = [1] * prompt
        for answer in answers:
            row += [2 + number] * answer
            number += 1
        rows.append(row + [0] * (length - len(row)))
    return torch.tensor(rows, dtype=torch.int16)


def test_positions_become_rows() -> None:
    """A prompt of 3 with answers of 1 and 2, one of 1 with an answer of 2; a convolution that looks 2 back."""
    regrouping = Regrouping.of(segments_of((3, 1, 2), (1, 2), length=6), tail=2)
    assert regrouping.prompts.tolist() == [[True] * 3, [True, False, False]]
    assert regrouping.owners.tolist() == [0, 0, 1]
    assert regrouping.answers.tolist() == [[1, 2, 3, 12], [1, 2, 4, 5], [12, 6, 7, 8]]
    assert regrouping.places[0].tolist() == [0, 1, 2, 6, 8, 9]
    assert regrouping.places[1, :3].tolist() == [3, 10, 11]


def test_values_come_back_to_where_they_were() -> None:
    segments = segments_of((3, 1, 2), (1, 2), length=6)
    regrouping = Regrouping.of(segments, tail=2)
    values = torch.arange(1.0, 25.0).view(2, 6, 2)
    prompts, answers = regrouping.split(values)
    assert prompts[1].tolist() == [[13, 14], [0, 0], [0, 0]]
    assert answers[0].tolist() == [[7, 8], [0, 0]]
    there = segments > 0
    assert torch.equal(regrouping.merged(prompts, answers)[there], values[there])
    _, tailed = regrouping.split(values, tail=True)
    assert tailed[2].tolist() == [[0, 0], [13, 14], [15, 16], [17, 18]]


def by_hand(attention: Any, hidden: Tensor) -> Tensor:
    """One sequence (T, D) through the layer's weights, a token at a time, in float64."""
    weights = {name: parameter.double() for name, parameter in attention.named_parameters()}
    mixed = hidden @ weights["in_proj_qkv.weight"].T
    kernel = weights["conv1d.weight"][:, 0]
    state, said = torch.zeros(4, 8, 6, dtype=torch.float64), []
    for step in range(len(hidden)):
        window = [mixed[at] if at >= 0 else torch.zeros_like(mixed[0]) for at in range(step - 3, step + 1)]
        query, key, value = nn.functional.silu((torch.stack(window, 1) * kernel).sum(1)).split([16, 16, 24])
        query, key = (part.view(2, 8).repeat_interleave(2, 0) for part in (query, key))
        query, key = (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (query, key))
        change = nn.functional.softplus(hidden[step] @ weights["in_proj_a.weight"].T + weights["dt_bias"])
        state = state * (-weights["A_log"].exp() * change).exp()[:, None, None]
        beta = (hidden[step] @ weights["in_proj_b.weight"].T).sigmoid()
        error = value.view(4, 6) - torch.einsum("hkv,hk->hv", state, key)
        state = state + torch.einsum("hk,hv->hkv", key, beta[:, None] * error)
        found = torch.einsum("hkv,hk->hv", state, query) / 8**0.5
        found = found / (found.square().mean(-1, keepdim=True) + attention.norm.variance_epsilon).sqrt()
        gate = nn.functional.silu((hidden[step] @ weights["in_proj_z.weight"].T).view(4, 6))
        said.append((weights["norm.weight"] * found * gate).flatten() @ weights["out_proj.weight"].T)
    return torch.stack(said)


def test_a_layer_gives_what_its_formula_gives() -> None:
    """Prompts and answers longer and shorter than a chunk of the kernel (64) and than what a convolution sees (4)."""
    model = tiny_model("qwen3_5_text")
    attention = linear_attentions(model)[0]
    lengths = (70, 5, 130, 66), (2, 3, 1)
    segments = segments_of(*lengths, length=272)
    hidden = torch.randn(2, 272, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), regrouped(attention, Regrouping.of(segments, 3)):
        found = attention(hidden)
    for row, (prompt, *answers) in enumerate(lengths):
        start = prompt
        for answer in answers:
            alone = torch.cat([hidden[row, :prompt], hidden[row, start : start + answer]]).double()
            expected = by_hand(attention, alone).float()
            torch.testing.assert_close(found[row, :prompt], expected[:prompt], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found[row, start : start + answer], expected[prompt:], rtol=1e-4, atol=1e-5)
            start += answer


@pytest.mark.parametrize("family", HYBRID_FAMILIES)
def test_long_prompts_and_answers(family: str) -> None:
    model = tiny_model(family)
    assert_equal_steps(model, pair_batch(model, [Pair(70, 5, 66, [(4, 4)]), Pair(3, 65, 130)]))


def test_a_layer_that_runs_again_is_given_the_batch_that_it_had() -> None:
    """Between a pass and its gradients, which run the layers again, the model sees another batch, and one unshared."""
    model = tiny_model("qwen3_5")
    batch, other = pair_batch(model, MIXED), pair_batch(model, [Pair(9, 4, 2)], seed=3)
    _, _, expected = run(model, ordinary, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train().zero_grad()
    loss = preference_loss(shared(model, batch))
    shared(model, other)
    ordinary(model, other)
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert difference(found, expected) <= 1e-5 * sum(float(g.square().sum()) for g in expected.values()) ** 0.5


def interrupted(*_: Any) -> None:
    raise InterruptedError


def test_kernels_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen3_5_text")
    attention = linear_attentions(model)[0]
    before = [getattr(owner, name) for owner, name in linear_kernels(attention)]
    batch = pair_batch(model, MIXED)
    plain = ordinary(model, batch)
    inputs, tokens = share_prefix(batch, None)
    for _ in range(2):
        pair_scores(model, inputs, tokens)
    with monkeypatch.context() as broken:
        broken.setattr(attention.out_proj, "forward", interrupted)
        with pytest.raises(InterruptedError):
            pair_scores(model, inputs, tokens)
    assert [getattr(owner, name) for owner, name in linear_kernels(attention)] == before
    assert len(attention._forward_pre_hooks) == len(attention._forward_hooks) == 1
    assert torch.equal(ordinary(model, batch), plain)


def test_a_copy_regroups_for_itself() -> None:
    """The reference may be a copy of a policy that has run."""
    model = tiny_model("qwen3_5")
    batch = pair_batch(model, MIXED)
    shared(model, batch)
    reference = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert_equal_steps(reference, batch)


def test_fused_kernels_are_regrouped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the libraries of Qwen's kernels, a layer convolves by a function that it is given by name."""
    model = tiny_model("qwen3_5_text")
    attentions = linear_attentions(model)
    if not hasattr(attentions[0], "causal_conv1d_fn"):
        pytest.skip("this transformers calls one function with and without the libraries")
    convolved: list[tuple[int, ...]] = []

    def convolve(x: Tensor, weight: Tensor, bias: Any, activation: str, seq_idx: Any) -> Tensor:
        convolved.append(tuple(x.shape))
        found = nn.functional.conv1d(x, weight[:, None], bias, padding=3, groups=len(weight))
        return nn.functional.silu(found)[:, :, : x.shape[2]]

    for attention in attentions:
        monkeypatch.setattr(attention, "causal_conv1d_fn", convolve)
    assert_equal_steps(model, pair_batch(model, [Pair(7, 5, 9)]))
    assert convolved[-2:] == [(1, 56, 7), (2, 56, 12)]


def test_what_is_not_proved_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen3_5")
    assert image_token_id(model) is not None
    assert why_not_shared(model) is None
    assert why_not_shared(model, FLEX_ATTENTION) == "its linear attention is proved beside sdpa and eager code only"
    attention = linear_attentions(model)[0]
    elsewhere = type("GatedDeltaNet", (nn.Module,), {"__module__": "elsewhere"})()
    monkeypatch.setitem(sys.modules, "elsewhere", sys)
    layer = next(layer for layer in model.model.language_model.layers if hasattr(layer, "linear_attn"))
    layer.linear_attn = elsewhere
    assert linear_kernels(attention) is not None
    assert why_not_shared(model) == "this transformers keeps the kernels of its linear attention elsewhere"
