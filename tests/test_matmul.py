"""One product, whichever library makes it."""

import pytest
import torch
from torch import Tensor

from uni_dpo.logprobs import SMALL, matmul_nt

ONEDNN = "mkldnn::_linear_pointwise"


@pytest.fixture(autouse=True)
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What this processor is taken for; oneDNN itself asks the processor."""
    found: str = getattr(request, "param", "AVX512")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: found)
    return found


def operators(left: Tensor, right: Tensor, out: Tensor | None = None) -> tuple[Tensor, set[str]]:
    """The product, and the names of the operators that made it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        product = matmul_nt(left, right, out)
    return product, {event.key for event in profile.key_averages()}


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
