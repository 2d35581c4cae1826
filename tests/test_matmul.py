"""One product, whichever library makes it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uni_dpo.matmul import SMALL, OneDNNLinear, matmul_nt, use_onednn

ONEDNN = "mkldnn::_linear_pointwise"


@pytest.fixture(autouse=True)
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What this processor is taken for; oneDNN itself asks the processor."""
    found: str = getattr(request, "param", "AVX512")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: found)
    return found


def operators(left: Tensor, right: Tensor, out: Tensor | None = None) -> tuple[Tensor, set[str]]:
    """The product, and the names of the operators that made it."""
    return watched(lambda: matmul_nt(left, right, out))


def watched(work: Callable[[], Any]) -> tuple[Any, set[str]]:
    """What `work` returns, and the names of the operators that ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = work()
    return result, {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("capability", ["AVX512", "AVX2"], indirect=True)
@pytest.mark.parametrize("left_transposed", [False, True])
@pytest.mark.parametrize("right_transposed", [False, True])
def test_large_products_are_exact_and_go_through_onednn_where_it_is_wider(
    capability: str, left_transposed: bool, right_transposed: bool
) -> None:
    torch.manual_seed(0)
    m, n, k = 130, 1031, 257
    left = torch.randn(k, m).t() if left_transposed else torch.randn(m, k)
    right = torch.randn(k, n).t() if right_transposed else torch.randn(n, k)
    out = torch.full((m, n), torch.nan)
    product, used = operators(left, right, out)
    assert (ONEDNN in used) == (capability == "AVX512")
    assert product is out
    expected = left.double() @ right.double().t()
    torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(matmul_nt(left, right), out, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_left_to_pytorch(dtype: torch.dtype) -> None:
    left, right = torch.randn(256, 256, dtype=dtype), torch.randn(512, 256, dtype=dtype)
    assert left.numel() * len(right) >= SMALL
    product, used = operators(left, right)
    assert "aten::mm" in used
    torch.testing.assert_close(product, left @ right.t(), rtol=0, atol=0)


def test_small_products_and_a_switched_off_onednn_are_left_to_pytorch() -> None:
    left, right = torch.randn(256, 256), torch.randn(256, 256)
    small, used = operators(left[:255], right)
    assert ONEDNN not in used
    torch.testing.assert_close(small, left[:255] @ right.t(), rtol=0, atol=0)
    with torch.backends.mkldnn.flags(enabled=False):
        assert ONEDNN not in operators(left, right)[1]
    assert ONEDNN in operators(left, right)[1]


@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_a_number_stays_visible(place: int) -> None:
    factors = [torch.ones(256, 256), torch.ones(512, 256)]
    factors[place][3, 5] = torch.nan
    product = matmul_nt(*factors)
    assert product.isnan().sum() == product.shape[1 - place]
    assert product.isnan().select(place, 3).all()


def linear_pair(*, bias: bool) -> tuple[nn.Linear, nn.Linear]:
    """A `OneDNNLinear`, and a plain layer of the same weights in float64."""
    torch.manual_seed(0)
    plain = nn.Linear(257, 1031, bias=bias)
    exact = nn.Linear(257, 1031, bias=bias, dtype=torch.float64)
    exact.load_state_dict(plain.state_dict())
    use_onednn(plain)
    return plain, exact


def step(layer: nn.Module, values: Tensor) -> list[Tensor]:
    """What a layer makes of values, and the gradients of values, weight and bias."""
    values = values.clone().requires_grad_()
    output = layer(values)
    (output * torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in (values, *layer.parameters()) if leaf.grad is not None)]


@pytest.mark.parametrize("capability", ["AVX512", "AVX2"], indirect=True)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(130,), (2, 65)])
def test_a_linear_layer_and_its_gradients_are_exact(capability: str, bias: bool, shape: tuple[int, ...]) -> None:
    layer, exact = linear_pair(bias=bias)
    values = torch.randn(*shape, 257)
    found, used = watched(lambda: step(layer, values))
    assert (ONEDNN in used) == (capability == "AVX512")
    assert ("aten::mm" in used) == (capability == "AVX2")
    expected = step(exact, values.double())
    assert len(found) == len(expected) == 3 + bias
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-3)


def test_a_frozen_linear_layer_makes_the_gradient_of_its_values_alone() -> None:
    layer, exact = linear_pair(bias=True)
    layer.requires_grad_(False), exact.requires_grad_(False)
    values = torch.randn(130, 257)
    _, gradient = step(layer, values)
    torch.testing.assert_close(gradient.double(), step(exact, values.double())[1], rtol=1e-5, atol=1e-4)


def test_activations_made_again_are_the_same() -> None:
    layer, _ = linear_pair(bias=True)
    values = torch.randn(130, 257)
    once = step(layer, values)
    layer.zero_grad()
    again = step(Again(layer), values)
    assert all(torch.equal(first, second) for first, second in zip(once, again, strict=True))


class Again(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = checkpoint(self.layer, values, use_reentrant=False)
        return found


def test_autocast_is_left_to_pytorch() -> None:
    layer, _ = linear_pair(bias=True)
    plain = nn.Linear(257, 1031)
    plain.load_state_dict(layer.state_dict())
    values = torch.randn(130, 257)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(values), plain(values), rtol=0, atol=0)
        assert layer(values).dtype == torch.bfloat16


def test_plain_linear_layers_alone_are_changed() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 3)), Special(3, 1))
    names = list(model.state_dict())
    use_onednn(model)
    assert [type(model[0]), type(model[1][0]), type(model[2])] == [OneDNNLinear, OneDNNLinear, Special]
    assert list(model.state_dict()) == names
