"""Uni-DPO for vision-language models: training, data and evaluation (arXiv 2506.10054).

The objective can be used in any training loop: `from uni_dpo import PairLogps, UniDPOConfig, uni_dpo_loss`.
Importing this package imports nothing heavy; torch comes with the first of these names.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uni_dpo.objective import PairLogps, UniDPOConfig, UniDPOLoss, uni_dpo_loss

__version__ = "0.2.0"
__all__ = ["PairLogps", "UniDPOConfig", "UniDPOLoss", "__version__", "uni_dpo_loss"]


def __getattr__(name: str) -> Any:
    """Import one of the public names on its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from uni_dpo import objective

    return getattr(objective, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
