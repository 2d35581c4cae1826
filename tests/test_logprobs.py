"""Against the naive computation: all logits, `log_softmax` in float64, one gather."""

import math

import pytest
import torch
from torch import Tensor, nn

from uni_dpo.logprobs import ResponseTokens, linear_logps, response_logps

LABELS = torch.tensor(
    [
        [-100, -100, 3, 1, 4, -100, -100],
        [-100, 1, 5, -100, 9, 2, 6],
        [-100, -100, -100, 5, -100, -100, -100],
        [7, 2, -100, -100, -100, -100, -100],
    ]
)
VOCABULARY, WIDTH = 47, 11
ONE_ROW = VOCABULARY * 8
ONE_COLUMN = 10 * 8


def naive(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None = None) -> tuple[Tensor, Tensor]:
    """Log-probability of every next label, zero where it is −100, and where it is not."""
    logits = hidden @ weight.T + (0 if bias is None else bias)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    next_labels = LABELS[:, 1:]
    logps = logits[:, :-1].log_softmax(-1).gather(2, next_labels.clamp(min=0)[..., None])[..., 0]
    scored = next_labels != -100
    return logps * scored, scored


def inputs(dtype: torch.dtype = torch.float64, *, bias: bool = False) -> tuple[Tensor, nn.Linear]:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype)
    return torch.randn(*LABELS.shape, WIDTH, dtype=dtype).requires_grad_(), head


def gradients(output: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    return list(torch.autograd.grad((output * weights).sum(), [t for t in tensors if t is not None]))


def test_a_uniform_head_gives_minus_log_of_the_vocabulary() -> None:
    logps = linear_logps(torch.zeros(3, WIDTH), torch.zeros(VOCABULARY, WIDTH), torch.tensor([0, 5, 46]))
    assert logps.tolist() == pytest.approx([-math.log(VOCABULARY)] * 3)


def test_tokens_are_predicted_one_position_earlier() -> None:
    tokens = ResponseTokens.from_labels(LABELS)
    assert tokens.target.tolist() == [3, 1, 4, 1, 5, 9, 2, 6, 5, 2]
    assert tokens.sequence.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2, 3]
    assert tokens.predictor.tolist() == [1, 2, 3, 7, 8, 10, 11, 12, 16, 21]
    assert tokens.offset.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 0, 0]
    assert tokens.lengths().tolist() == [3, 5, 1, 1]


@pytest.fixture(params=[0, 2**30], ids=["made again", "kept"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits are made again in the backward pass, or kept for it."""
    monkeypatch.setattr("uni_dpo.logprobs.KEPT_BYTES", request.param)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("chunk_bytes", [1, 5 * ONE_COLUMN, 2**20], ids=["one column", "five columns", "all"])
@pytest.mark.parametrize("softcap", [None, 2.0], ids=["uncapped", "capped"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_values_and_gradients_are_those_of_the_full_logits(bias: bool, softcap: float | None, chunk_bytes: int) -> None:
    hidden, head = inputs(bias=bias)
    expected, _ = naive(hidden, head.weight, head.bias, softcap)
    tokens = ResponseTokens.from_labels(LABELS)
    capped = None if softcap is None else lambda states: softcap * torch.tanh(head(states) / softcap)
    sums = tokens.sum(response_logps(hidden, head, tokens, project=capped, chunk_bytes=chunk_bytes))
    torch.testing.assert_close(sums, expected.sum(1), rtol=1e-12, atol=0)
    for mine, theirs in zip(
        gradients(sums, hidden, head.weight, head.bias),
        gradients(expected.sum(1), hidden, head.weight, head.bias),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("width", [3, 10, 40], ids=["narrower", "as wide", "wider"])
def test_a_head_narrower_or_wider_than_there_are_tokens(width: int) -> None:
    """What is kept lies where the weight's gradient will, or beside it."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(10, width, dtype=torch.float64, generator=draw).requires_grad_()
    weight = torch.randn(VOCABULARY, width, dtype=torch.float64, generator=draw).requires_grad_()
    target = torch.randint(VOCABULARY, (10,), generator=draw)
    logps = linear_logps(hidden, weight, target, chunk_bytes=7 * ONE_COLUMN)
    expected = (hidden @ weight.T).log_softmax(-1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(logps, expected)
    for mine, theirs in zip(gradients(logps, hidden, weight), gradients(expected, hidden, weight), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_second_backward_pass_makes_again_what_the_first_wrote_over() -> None:
    hidden, head = inputs(torch.float32)
    logps = response_logps(hidden, head, ResponseTokens.from_labels(LABELS))
    first = torch.autograd.grad(logps.sum(), [hidden, head.weight], retain_graph=True)
    second = torch.autograd.grad(logps.sum(), [hidden, head.weight])
    torch.testing.assert_close(second, first)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_lower_precision_stays_near_float64(dtype: torch.dtype, tolerance: float) -> None:
    hidden, head = inputs(dtype)
    tokens = ResponseTokens.from_labels(LABELS)
    logps = response_logps(hidden, head, tokens)
    expected, scored = naive(hidden.double(), head.weight.double(), None)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps.double(), expected[scored], rtol=tolerance, atol=tolerance)
    mine, theirs = gradients(logps, hidden, head.weight), gradients(expected[scored], hidden, head.weight)
    for first, second in zip(mine, theirs, strict=True):
        assert (first - second).norm() <= tolerance * second.norm()


def test_autocast_computes_in_the_lower_precision_and_keeps_float32_gradients() -> None:
    hidden, head = inputs(torch.float32)
    tokens = ResponseTokens.from_labels(LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        logps = response_logps(hidden, head, tokens)
    full = response_logps(hidden.bfloat16(), head.bfloat16(), tokens)
    assert torch.equal(logps, full)
    assert gradients(logps, hidden)[0].dtype == torch.float32


@pytest.mark.parametrize("trainable", ["hidden", "head"])
def test_what_is_frozen_gets_no_gradient(trainable: str) -> None:
    hidden, head = inputs()
    (hidden if trainable == "head" else head).requires_grad_(False)
    tokens = ResponseTokens.from_labels(LABELS)
    learnt = hidden if trainable == "hidden" else head.weight
    expected, scored = naive(hidden, head.weight, None)
    mine = gradients(response_logps(hidden, head, tokens, chunk_bytes=1), learnt)[0]
    torch.testing.assert_close(mine, gradients(expected[scored], learnt)[0], rtol=1e-10, atol=1e-13)


class AdaptedHead(nn.Module):
    """A frozen projection with a low-rank update, as LoRA has it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.out_features = base.requires_grad_(False), base.out_features
        self.down = nn.Linear(WIDTH, 2, bias=False, dtype=torch.float64)
        self.up = nn.Linear(2, VOCABULARY, bias=False, dtype=torch.float64)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base(hidden) + self.up(self.down(hidden))


def test_an_adapted_head_is_called_and_its_adapter_learns() -> None:
    hidden, base = inputs()
    head = AdaptedHead(base)
    tokens = ResponseTokens.from_labels(LABELS)
    expected, scored = naive(hidden, base.weight + head.up.weight @ head.down.weight, None)
    logps = response_logps(hidden, head, tokens, chunk_bytes=2 * ONE_ROW)
    torch.testing.assert_close(logps, expected[scored], rtol=1e-12, atol=0)
    learnt = (hidden, head.up.weight, head.down.weight)
    for mine, theirs in zip(gradients(logps, *learnt), gradients(expected[scored], *learnt), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


def test_many_logits_are_not_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uni_dpo.logprobs.KEPT_BYTES", 0)
    hidden, head = inputs()
    tokens = ResponseTokens.from_labels(LABELS)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        logps = response_logps(hidden, head, tokens, chunk_bytes=ONE_COLUMN)
    assert not logps.grad_fn.kept
    assert max(kept) <= max(hidden.numel(), head.weight.numel())
    assert sum(kept) < len(tokens.target) * VOCABULARY + hidden.numel() + head.weight.numel()


@pytest.mark.usefixtures("kept")
def test_extreme_logits_stay_finite() -> None:
    hidden, head = inputs(torch.float32)
    head.weight.data[20:] *= 1e4
    tokens = ResponseTokens.from_labels(LABELS)
    logps = response_logps(hidden, head, tokens, chunk_bytes=7 * ONE_COLUMN)
    expected, scored = naive(hidden.double(), head.weight.double(), None)
    torch.testing.assert_close(logps.double(), expected[scored], rtol=1e-5, atol=1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients(logps, hidden, head.weight))


@pytest.mark.usefixtures("kept")
def test_a_second_backward_pass_gives_the_same_gradients() -> None:
    hidden, head = inputs()
    sums = response_logps(hidden, head, ResponseTokens.from_labels(LABELS)).sum()
    first = torch.autograd.grad(sums, [hidden, head.weight], retain_graph=True)
    second = torch.autograd.grad(sums, [hidden, head.weight])
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_ld_alpha_weighs_the_tokens_past_the_shorter_answer(alpha: float) -> None:
    tokens = ResponseTokens.from_labels(LABELS)
    logps = -torch.arange(1.0, 11.0)
    # Pairs are rows (0, 2) and (1, 3), whose shorter answers have one token each: that much counts in full.
    expected = [-1 - alpha * (2 + 3), -4 - alpha * (5 + 6 + 7 + 8), -9, -10]
    assert tokens.sum(logps, ld_alpha=alpha).tolist() == pytest.approx(expected)


def test_a_batch_without_answers_sums_to_zero() -> None:
    hidden, head = inputs()
    tokens = ResponseTokens.from_labels(torch.full_like(LABELS, -100))
    sums = tokens.sum(response_logps(hidden, head, tokens))
    assert sums.tolist() == [0, 0, 0, 0]
    assert not gradients(sums, hidden)[0].any()
