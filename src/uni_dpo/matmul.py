"""Matrix products by the library that is faster on this machine's CPU."""

import torch
from torch import Tensor

SMALL = 2**24
"""Products of fewer multiplications are left to BLAS: oneDNN generates code for every new shape, in up to 2 ms."""


def matmul_nt(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply by a transposed matrix, in full precision and without a gradient.

    Float32 on a CPU goes through oneDNN, which PyTorch has for convolutions and bfloat16: PyTorch's own choice for
    float32, MKL, takes twice as long on an AMD processor (`benchmarks/matmul.py`).

    Args:
        left: (M, K), of any strides, as `right`.
        right: (N, K).
        out: (M, N), gets the product; None makes it.

    Returns:
        (M, N) left · rightᵀ.
    """
    if not _suits_onednn(left, right):
        return torch.mm(left, right.t(), out=out)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return product if out is None else out.copy_(product)


def _suits_onednn(left: Tensor, right: Tensor) -> bool:
    if left.device.type != "cpu" or {left.dtype, right.dtype} != {torch.float32}:
        return False
    if left.numel() * len(right) < SMALL or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return bool(torch.backends.mkldnn.enabled) and torch.backends.mkldnn.is_available()
