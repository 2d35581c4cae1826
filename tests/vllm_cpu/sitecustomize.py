"""On `PYTHONPATH` of vLLM's test environment: lets torchvision from the registry load beside a CPU torch.

That torchvision is built for CUDA; its compiled operators do not load, and its Python part then registers
fake versions of two operators that nobody has declared. They are declared here, right before its import.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_SCHEMAS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing; declares the operators when torchvision is first asked for."""

    library: object = None

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None:
                library = torch.library.Library("torchvision", "DEF")
                for schema in _SCHEMAS:
                    library.define(schema)
                _BeforeTorchvision.library = library  # declarations last as long as this does
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
