"""What counts a step: products by PyTorch's counter, and the bytes of the storages that are alive."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of what is made within it and still alive.

    Args:
        there: modules whose weights were there before.
    """

    def __init__(self, *there: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = {id(p.untyped_storage()): None for module in there for p in module.parameters()}
        self._there = [p.untyped_storage() for module in there for p in module.parameters()]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        if func is torch.ops.aten._log_softmax.default and not args[0].is_contiguous():
            self.peak = max(self.peak, self.live + args[0].nbytes)  # its kernels copy such an input
        return result

    def _note(self, storage: Any) -> None:
        if id(storage) not in self._known:
            size = storage.nbytes()
            self._known[id(storage)] = None
            weakref.finalize(storage, self._forget, id(storage), size)
            self.live += size
            self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self.live -= size


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, which also knows the CPU's attention and oneDNN's products."""

    def forward(query: Any, key: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        rows, heads, length, size = query  # with fewer keys than heads, several heads use one
        return 4 * rows * heads * length * key[2] * size

    def backward(grad: Any, query: Any, key: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 5 * forward(query, key) // 2

    def product(left: Any, right: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * left[0] * left[1] * right[0]

    kernels = {ATTENTION: forward, ATTENTION_BACKWARD: backward, torch.ops.mkldnn._linear_pointwise: product}
    return FlopCounterMode(display=False, custom_mapping=kernels)
