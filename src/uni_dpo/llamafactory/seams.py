"""The only place that touches LlamaFactory's private names.

Each seam is one name in one upstream module. All of them are looked up before any is replaced, so that a
LlamaFactory with another inside is refused whole instead of being half changed.
"""

import importlib
import sys
from types import TracebackType
from typing import Any

from packaging.version import Version

from uni_dpo.errors import UniDPOError, plain

OLDEST, NEWEST = Version("0.9.4"), Version("0.9.5")

SEAMS: tuple[tuple[str, str, str], ...] = (
    ("llamafactory.data.parser", "DatasetAttr", "uni_dpo.llamafactory.data:ScoredDatasetAttr"),
    (
        "llamafactory.data.converter",
        "get_dataset_converter",
        "uni_dpo.llamafactory.data:get_dataset_converter",
    ),
    ("llamafactory.data.loader", "_load_single_dataset", "uni_dpo.llamafactory.data:load_single_dataset"),
    ("llamafactory.data.loader", "align_dataset", "uni_dpo.llamafactory.data:align_dataset"),
    (
        "llamafactory.data.loader",
        "PairwiseDatasetProcessor",
        "uni_dpo.llamafactory.data:ScoredPairwiseProcessor",
    ),
    (
        "llamafactory.train.dpo.workflow",
        "PairwiseDataCollatorWithPadding",
        "uni_dpo.llamafactory.data:ScoredPairCollator",
    ),
    ("llamafactory.train.dpo.workflow", "get_dataset", "uni_dpo.llamafactory.workflow:get_dataset"),
    (
        "llamafactory.train.dpo.workflow",
        "create_ref_model",
        "uni_dpo.llamafactory.workflow:create_ref_model",
    ),
    ("llamafactory.train.dpo.trainer", "CustomDPOTrainer", "uni_dpo.llamafactory.trainer:UniDPOTrainer"),
    ("llamafactory.train.dpo", "run_dpo", "uni_dpo.llamafactory.workflow:run_dpo"),
    (
        "llamafactory.model.patcher",
        "prepare_valuehead_model",
        "uni_dpo.models.rewards.value_head:prepare_valuehead_model",
    ),
)
"""(upstream module, name in it, what stands there once registered)."""

ARGUMENT_LISTS = ("_TRAIN_ARGS", "_INFER_ARGS", "_EVAL_ARGS")
"""Lists in `llamafactory.hparams.parser` that hold `FinetuningArguments`."""


def register() -> None:
    """Put Uni-DPO into the LlamaFactory on the import path. A second call does nothing.

    Raises:
        UniDPOError: LlamaFactory is missing, of an untested version, or lacks a seam.
    """
    version = _version()
    parser = importlib.import_module("llamafactory.hparams.parser")
    upstream = [(importlib.import_module(module), name, ours) for module, name, ours in SEAMS]
    for module, name in [
        *((module, name) for module, name, _ in upstream),
        *((parser, a) for a in ARGUMENT_LISTS),
    ]:
        if not hasattr(module, name):
            raise _unsupported(version, f"{module.__name__}.{name} is missing")
    if sys.excepthook is not _excepthook:
        _excepthook.previous = sys.excepthook  # type: ignore[attr-defined]
        sys.excepthook = _excepthook

    from uni_dpo.llamafactory.arguments import UniDPOFinetuningArguments

    for attribute in ARGUMENT_LISTS:
        classes = getattr(parser, attribute)
        classes[:] = [UniDPOFinetuningArguments if cls.__name__ == "FinetuningArguments" else cls for cls in classes]
    for module, name, ours in upstream:
        setattr(module, name, _resolve(ours))
    tuner = sys.modules.get("llamafactory.train.tuner")
    if hasattr(tuner, "run_dpo"):
        tuner.run_dpo = _resolve("uni_dpo.llamafactory.workflow:run_dpo")  # type: ignore[union-attr]


def train_arguments() -> list[type]:
    """The dataclasses of what training may be told; with `register`, ours among them."""
    return list(importlib.import_module("llamafactory.hparams.parser")._TRAIN_ARGS)


def _version() -> Version:
    try:
        from llamafactory.extras.env import VERSION
    except ModuleNotFoundError as error:
        if error.name != "llamafactory":
            raise
        raise UniDPOError('LlamaFactory is not installed: pip install "uni-dpo[train]"') from None
    version = Version(VERSION)
    if not OLDEST <= version <= NEWEST:
        raise _unsupported(version, "it is outside the tested range")
    return version


def _unsupported(version: Version, why: str) -> UniDPOError:
    return UniDPOError(
        f"LlamaFactory {version} cannot be used: {why}. Tested are {OLDEST} to {NEWEST}: "
        f'pip install "llamafactory=={NEWEST}"'
    )


def _resolve(reference: str) -> Any:
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Show a fault of the user's input without a traceback, whichever launcher runs us."""
    if isinstance(error, UniDPOError):
        print(f"error: {plain(str(error))}", file=sys.stderr)
    else:
        _excepthook.previous(kind, error, traceback)  # type: ignore[attr-defined]
