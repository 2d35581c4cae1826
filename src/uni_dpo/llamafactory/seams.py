"""The only place that touches LlamaFactory's private names.

Each seam is one name in one upstream module. All of them are looked up before any is replaced: a LlamaFactory that
has them is used, whatever it calls itself; one with another inside stays as it is, and only refuses to train with
`pref_loss: uni_dpo`.
"""

import importlib
import os
import re
import sys
from types import TracebackType
from typing import Any

from packaging.version import InvalidVersion, Version

from uni_dpo.errors import UniDPOError, plain
from uni_dpo.settings.losses import UNI_DPO
from uni_dpo.settings.training import flags

OLDEST, NEWEST = Version("0.9.4"), Version("0.9.5")

SEAMS: tuple[tuple[str, str, str], ...] = (
    ("llamafactory.data.parser", "DatasetAttr", "uni_dpo.llamafactory.data:ScoredDatasetAttr"),
    ("llamafactory.data.converter", "get_dataset_converter", "uni_dpo.llamafactory.data:get_dataset_converter"),
    ("llamafactory.data.loader", "_load_single_dataset", "uni_dpo.llamafactory.data:load_single_dataset"),
    ("llamafactory.data.loader", "align_dataset", "uni_dpo.llamafactory.data:align_dataset"),
    ("llamafactory.data.loader", "PairwiseDatasetProcessor", "uni_dpo.llamafactory.processor:ScoredPairwiseProcessor"),
    (
        "llamafactory.train.dpo.workflow",
        "PairwiseDataCollatorWithPadding",
        "uni_dpo.llamafactory.data:ScoredPairCollator",
    ),
    ("llamafactory.train.dpo.workflow", "get_dataset", "uni_dpo.llamafactory.workflow:get_dataset"),
    ("llamafactory.train.dpo.workflow", "create_ref_model", "uni_dpo.llamafactory.workflow:create_ref_model"),
    ("llamafactory.train.dpo.trainer", "CustomDPOTrainer", "uni_dpo.llamafactory.trainer:LlamaFactoryUniDPOTrainer"),
    ("llamafactory.train.dpo", "run_dpo", "uni_dpo.llamafactory.workflow:run_dpo"),
    (
        "llamafactory.model.patcher",
        "prepare_valuehead_model",
        "uni_dpo.models.rewards.value_head:prepare_valuehead_model",
    ),
)
"""(upstream module, name in it, what stands there once registered)."""

WEB_SEAMS: tuple[tuple[str, str, str], ...] = (
    ("llamafactory.webui.components.train", "create_train_tab", "uni_dpo.llamafactory.webui:create_train_tab"),
    ("llamafactory.webui.runner", "Runner", "uni_dpo.llamafactory.webui:LlamaBoardRunner"),
)
"""The same of LlamaBoard, which is imported only where it is served."""

ARGUMENT_LISTS = ("_TRAIN_ARGS", "_INFER_ARGS", "_EVAL_ARGS")
"""Lists in `llamafactory.hparams.parser` that hold `FinetuningArguments`."""


_fault: UniDPOError | None = None
"""Why this process cannot train with `pref_loss: uni_dpo`, once `register` has found out."""

_spoken_of: set[str] = set()
"""Versions of which this process has said that they are not tested."""


def register() -> None:
    """Put Uni-DPO into the LlamaFactory on the import path. A second call does nothing.

    A LlamaFactory that lacks a seam stays as it is, so that everything else of it works; see `refuse_uni_dpo`.

    Raises:
        UniDPOError: LlamaFactory is missing.
    """
    global _fault
    version = _version()
    if not hasattr(_excepthook, "previous"):  # once: Ray's hook, set in between, calls the one that it found
        _excepthook.previous = sys.excepthook  # type: ignore[attr-defined]
        sys.excepthook = _excepthook
    parser: Any = importlib.import_module("llamafactory.hparams.parser")
    missing = missing_seams()
    if missing:
        _fault = UniDPOError(
            f"LlamaFactory {version} cannot train with pref_loss: uni_dpo: it has no {' and no '.join(missing)}. "
            f"Use one that is tested, {OLDEST} to {NEWEST}: `git checkout v{NEWEST}` in a checkout, or "
            f'pip install "llamafactory=={NEWEST}"'
        )
        if hasattr(parser, "read_args"):
            parser.read_args = _refusing(parser.read_args)
        return
    _fault = None
    if not is_tested(version) and first_process() and version not in _spoken_of:
        _spoken_of.add(version)
        print(
            f"LlamaFactory {version} is not among the tested ones ({OLDEST} to {NEWEST}), but has what Uni-DPO needs.",
            file=sys.stderr,
        )

    from uni_dpo.llamafactory.arguments import UniDPOFinetuningArguments

    for attribute in ARGUMENT_LISTS:
        classes = getattr(parser, attribute)
        classes[:] = [UniDPOFinetuningArguments if cls.__name__ == "FinetuningArguments" else cls for cls in classes]
    for module, name, ours in SEAMS:
        setattr(importlib.import_module(module), name, _resolve(ours))
    if "llamafactory.webui" in sys.modules:
        register_web_ui()
    tuner = sys.modules.get("llamafactory.train.tuner")
    if hasattr(tuner, "run_dpo"):
        tuner.run_dpo = _resolve("uni_dpo.llamafactory.workflow:run_dpo")  # type: ignore[union-attr]


def register_web_ui() -> None:
    """Put Uni-DPO into LlamaBoard, in every module of it that holds what is replaced. A second call does nothing.

    A LlamaBoard that lacks a seam stays as it is.
    """
    if not all(_has(module, name) for module, name, _ in WEB_SEAMS):
        print("This LlamaFactory's page has another inside: it does not show uni_dpo.", file=sys.stderr)
        return
    for module, name, ours in WEB_SEAMS:
        stock, replacement = getattr(importlib.import_module(module), name), _resolve(ours)
        for page in [found for key, found in sys.modules.items() if key.startswith("llamafactory.webui")]:
            if getattr(page, name, None) is stock:
                setattr(page, name, replacement)


def refuse_uni_dpo(given: dict[str, Any] | list[str]) -> None:
    """Refuse settings that ask for `uni_dpo`, or for losses with weights, where `register` found that it cannot be.

    Raises:
        UniDPOError: says what is missing and what to check out.
    """
    loss = (given if isinstance(given, dict) else flags(given)).get("pref_loss", "sigmoid")
    if _fault is not None and (loss == UNI_DPO or isinstance(loss, dict) or re.search("[:=]", str(loss))):
        raise _fault


def missing_seams() -> list[str]:
    """Name what this plugin needs of the LlamaFactory on the import path and does not find there."""
    return [f"{module}.{name}" for module, name in needed_names() if not _has(module, name)]


def needed_names() -> list[tuple[str, str]]:
    """List (module, name) of everything that has to be in LlamaFactory."""
    parser = "llamafactory.hparams.parser"
    return [*((module, name) for module, name, _ in SEAMS), *((parser, name) for name in ARGUMENT_LISTS)]


def is_tested(version: str) -> bool:
    """Tell whether a version lies in the tested range.

    `.dev0`, `.post1` and release candidates count as what they are.
    """
    try:
        return OLDEST <= Version(version) <= NEWEST
    except InvalidVersion:
        return False


def first_process() -> bool:
    """Tell whether this is the process of its machine that talks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        return False


def _refusing(read: Any) -> Any:
    """LlamaFactory's reading of arguments, which refuses those that ask for `uni_dpo`."""

    def read_args(args: Any = None) -> Any:
        given = read(args)
        refuse_uni_dpo(given)
        return given

    return read_args


def _version() -> str:
    try:
        from llamafactory.extras.env import VERSION
    except ModuleNotFoundError as error:
        if error.name != "llamafactory":
            raise
        raise UniDPOError('LlamaFactory is not installed: pip install "uni-dpo[train]"') from None
    return str(VERSION)


def _resolve(reference: str) -> Any:
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Show a fault of the user's input without a traceback, whichever launcher runs us."""
    if isinstance(error, UniDPOError):
        print(f"error: {plain(str(error))}", file=sys.stderr)
    else:
        _excepthook.previous(kind, error, traceback)  # type: ignore[attr-defined]
