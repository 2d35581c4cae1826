"""Where TRL 0.24's trainers meet transformers 5: what both our trainers need."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from uni_dpo.shared_prefix import image_token_id
from uni_dpo.shared_prefix.families import unwrapped


def with_warnings_issued(model: Any) -> Any:
    """`model` with the list of past warnings that TRL writes into; the models of transformers 5 have none."""
    if not hasattr(model, "warnings_issued"):
        model.warnings_issued = {}
    return model


def with_token_types(model: Any) -> Callable[..., Any]:
    """`model` as TRL calls it, told which tokens stand for images: Qwen-VL places them by that.

    Args:
        model: takes `input_ids` and more by name; wrapped or not.
    """
    if "mm_token_type_ids" not in inspect.signature(unwrapped(model).forward).parameters:
        return model

    def forward(input_ids: Tensor, **inputs: Any) -> Any:
        token = torch.tensor(image_token_id(model), device=input_ids.device)
        return model(input_ids, mm_token_type_ids=(input_ids == token).int(), **inputs)

    return forward
