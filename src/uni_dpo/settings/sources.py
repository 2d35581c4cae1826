"""The settings of argument classes, read from their source: importing LlamaFactory or TRL takes ten seconds.

Known are names, types, ranges, defaults and help. What only the imported classes can tell is checked after.
"""

import ast
import re
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from uni_dpo.settings import options
from uni_dpo.settings.losses import UNI_DPO, LossWeights

Places = tuple[tuple[str, tuple[str, ...]], ...]
"""Package, and the files or folders in it."""
TRANSFORMERS = ("transformers", ("trainer_utils.py", "training_args.py"))
TRAIN: Places = (
    ("uni_dpo", ("data/ranking.py", "objective.py", "ledger/__init__.py", "llamafactory/arguments.py")),
    ("llamafactory", ("extras/constants.py", "hparams")),
    TRANSFORMERS,
    ("transformers", ("training_args_seq2seq.py",)),
)
TRL_DPO: Places = (
    ("uni_dpo", ("objective.py", "ledger/__init__.py", "trl/arguments.py")),
    ("trl", ("scripts/utils.py", *(f"trainer/{name}_config.py" for name in ("base", "dpo", "model")))),
    TRANSFORMERS,
)
GRPO: Places = (("trl", ("trainer/base_config.py", "trainer/grpo_config.py")), TRANSFORMERS)
_CONFIGS = ("TRLUniDPOConfig", "DPOConfig", "GRPOConfig", "ModelConfig", "DatasetMixtureConfig", "_BaseConfig")
"""Classes of settings whose names do not end in Arguments."""
_NAMES: dict[str, Any] = {
    **{kind.__name__: kind for kind in (str, int, float, bool, list, dict, Ge, Gt, Le, Lt)},
    **{name: getattr(typing, name) for name in ("Annotated", "Dict", "List", "Literal", "Optional", "Union")},
    **{name: getattr(options, name) for name in ("Count", "Finite", "NotNegative", "Positive", "Share", "TopP")},
}
"""What annotations are made of."""
_SYNTAX = (ast.Name, ast.Constant, ast.Subscript, ast.Tuple, ast.BinOp, ast.BitOr, ast.Call, ast.expr_context)
"""How they are put together; nothing else of a source is evaluated."""
_FROM_1, _FROM_0, _ABOVE_0, _SHARE = (Ge(1),), (Ge(0),), (Gt(0),), (Ge(0), Le(1))
RANGES: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(
        (
            *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "cutoff_len"),
            *("lora_rank", "lora_alpha", "max_samples", "preprocessing_num_workers", "preprocessing_batch_size"),
            *("image_max_pixels", "image_min_pixels", "video_max_pixels", "video_min_pixels", "save_total_limit"),
            *("max_new_tokens", "num_beams"),
        ),
        _FROM_1,
    ),
    **dict.fromkeys(
        (
            *("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "val_size", "pref_ftx", "seed"),
            *("simpo_gamma", "adam_epsilon", "dataloader_num_workers", "top_k", "neftune_noise_alpha"),
        ),
        _FROM_0,
    ),
    **dict.fromkeys(
        (
            *("num_train_epochs", "logging_steps", "save_steps", "eval_steps", "pref_beta", "temperature"),
            *("repetition_penalty", "loraplus_lr_ratio"),
        ),
        _ABOVE_0,
    ),
    **dict.fromkeys(("warmup_ratio", "lora_dropout", "ld_alpha"), _SHARE),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (Ge(0), Lt(1))),
    "dpo_label_smoothing": (Ge(0), Le(0.5)),
    "top_p": (Gt(0), Le(1)),
}
"""Ranges of settings of LlamaFactory's and transformers', which take any number and fail or learn nothing later."""


@dataclass(frozen=True)
class KnownSetting:
    """One setting as its source has it: name, the class it stands in, type, default as source, help."""

    name: str
    group: str
    kind: Any
    default: str
    help: str


@lru_cache
def known_settings(places: Places = TRAIN) -> tuple[KnownSetting, ...]:
    """Read the settings of packages, in the order of `places`; none of a package that is not installed.

    A name that stands in several classes is the first one's.
    """
    files = list(_files(places))
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    choices = {name: values for tree in trees for name, values in _enumerations(tree)}
    found: dict[str, KnownSetting] = {}
    for tree in trees:
        for setting in _fields(tree, choices):
            first = found.setdefault(setting.name, setting)
            if setting.name == "pref_loss" and get_origin(setting.kind) is Literal:
                names: Any = Literal[(*get_args(setting.kind), UNI_DPO)]
                found[setting.name] = replace(first, kind=names | LossWeights)
            elif setting.name == "loss_type" and setting.group == "TRLUniDPOConfig":
                found[setting.name] = replace(first, kind=str | first.kind | LossWeights)
    return tuple(found.values())


def _files(places: Places) -> Iterator[Path]:
    for package, names in places:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in (Path(folder, name) for name in names):
                yield from sorted(path.glob("*.py")) if path.is_dir() else [path] if path.is_file() else []


def _enumerations(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """The enumerations of a file, as Literal types of their values; and its own Literal types by name."""
    for node in tree.body:
        match node:
            case ast.ClassDef(bases=bases) if any(ast.unparse(base).endswith("Enum") for base in bases):
                held = [item.value for item in node.body if isinstance(item, ast.Assign)]
                values = [each.value for each in held if isinstance(each, ast.Constant) and isinstance(each.value, str)]
                if values:
                    yield node.name, Literal[tuple(values)]
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript() as value):
                if get_origin(kind := kind_of(value, {})) is Literal:
                    yield name, kind


def _fields(tree: ast.Module, choices: Mapping[str, Any]) -> Iterator[KnownSetting]:
    """The fields of a file's argument classes."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    fields = {
        (group.name, item.target.id): item
        for group in classes
        for item in group.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    constants = {
        f"{group}.{name}": ast.unparse(item.value) for (group, name), item in fields.items() if item.value is not None
    }
    settable = {
        group.name
        for group in classes
        if group.decorator_list and (group.name.endswith(("Arguments", "Argument")) or group.name in _CONFIGS)
    }
    for (group, name), item in fields.items():
        words = {word.arg: word.value for word in item.value.keywords} if isinstance(item.value, ast.Call) else {}
        init = words.get("init")
        if group in settable and not (isinstance(init, ast.Constant) and init.value is False):
            default = words.get("default", None if words else item.value)
            text = "" if default is None else ast.unparse(default)
            kind = kind_of(item.annotation, choices)
            yield KnownSetting(name, group, kind, constants.get(text, text), _help(words.get("metadata")))


def kind_of(node: ast.expr, choices: Mapping[str, Any]) -> Any:
    """Read a type from its source, `choices` being known by name; `Any` where it is none of the plain ones."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return kind_of(ast.parse(node.value, mode="eval").body, choices)
    if not all(isinstance(part, _SYNTAX) for part in ast.walk(node)):
        return Any
    try:
        kind = eval(ast.unparse(node), {"__builtins__": {}}, defaultdict(lambda: Any, _NAMES | {**choices}))
    except (TypeError, AttributeError, LookupError, SyntaxError):
        return Any
    return Any if "ForwardRef(" in repr(kind) else kind  # of a name in quotation marks


def _help(metadata: ast.expr | None) -> str:
    if isinstance(metadata, ast.Dict):
        for key, value in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "help" and isinstance(value, ast.Constant):
                return str(value.value)
    return ""


@lru_cache
def known_templates() -> dict[str, bool]:
    """Read LlamaFactory's templates from its source.

    Returns:
        name → whether the template takes images; nothing where LlamaFactory is not installed.
    """
    found: dict[str, bool] = {}
    for file in _files((("llamafactory", ("data/template.py",)),)):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                words = {word.arg: word.value for word in node.value.keywords}
                plugin, name = words.get("mm_plugin"), words.get("name")
                if isinstance(name, ast.Constant):
                    parts = plugin.keywords if isinstance(plugin, ast.Call) else []
                    found[str(name.value)] = any(part.arg == "image_token" for part in parts)
    return found


@lru_cache
def known_trl_losses() -> tuple[str, ...]:
    """Read the losses of TRL's DPO trainer from its source, in the order that they stand there."""
    (file,) = _files((("trl", ("trainer/dpo_trainer.py",)),))
    return tuple(dict.fromkeys(re.findall(r'loss_type == "(\w+)"', file.read_text(encoding="utf-8"))))
