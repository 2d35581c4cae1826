"""Products in float32 on a CPU, by the faster of the two libraries that PyTorch has for them.

PyTorch's own choice is MKL, which takes up to twice as long as oneDNN on an AMD processor with AVX-512
(`benchmarks/matmul.py`).
"""

import torch
from torch import Tensor, nn

SMALL = 2**24
"""Products of fewer multiplications are left to BLAS: oneDNN generates code for every new shape, in up to 2 ms."""


def matmul_nt(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply by a transposed matrix, in full precision and without a gradient.

    Float32 on a CPU that has AVX-512 goes through oneDNN, which PyTorch has for convolutions and bfloat16. Without
    AVX-512 both libraries take as long, and MKL writes to `out` itself.

    Args:
        left: (M, K), of any strides, as `right`.
        right: (N, K).
        out: (M, N), gets the product; None makes it.

    Returns:
        (M, N) left · rightᵀ.
    """
    if not _suits_onednn(left, right):
        return torch.mm(left, right.t(), out=out)
    product = _by_onednn(left, right)
    return product if out is None else out.copy_(product)


class OneDNNLinear(nn.Linear):
    """A linear layer whose products go the way of `matmul_nt`, and so do those of its gradients."""

    def forward(self, values: Tensor) -> Tensor:
        """Do what `nn.Linear` does: (…, K) → (…, N)."""
        if torch.is_autocast_enabled(values.device.type) or not _suits_onednn(values, self.weight):
            return super().forward(values)
        product: Tensor = _Linear.apply(values, self.weight, self.bias)
        return product


def use_onednn(module: nn.Module) -> None:
    """Make every plain linear layer within `module` a `OneDNNLinear`; its parameters stay as they are."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = OneDNNLinear


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, weight, bias):  # type: ignore[no-untyped-def]  # torch's signature
        ctx.save_for_backward(values, weight)
        return _by_onednn(_rows(values), weight, bias).view(*values.shape[:-1], len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grad_outputs):  # type: ignore[no-untyped-def]  # torch's signature
        values, weight = ctx.saved_tensors
        wants_values, wants_weight, wants_bias = ctx.needs_input_grad
        grad = _rows(grad_outputs[0])
        return (
            matmul_nt(grad, weight.t()).view(values.shape) if wants_values else None,
            matmul_nt(grad.t(), _rows(values).t()) if wants_weight else None,
            grad.sum(0) if wants_bias else None,
        )


def _rows(values: Tensor) -> Tensor:
    return values.reshape(-1, values.shape[-1])


def _by_onednn(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return product


def _suits_onednn(left: Tensor, right: Tensor) -> bool:
    if left.device.type != "cpu" or {left.dtype, right.dtype} != {torch.float32}:
        return False
    if left.numel() * len(right) < SMALL or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return bool(torch.backends.mkldnn.enabled) and torch.backends.mkldnn.is_available()
