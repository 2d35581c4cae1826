"""What of a training configuration will not work here, said before torch, transformers or LlamaFactory is imported.

The names that LlamaFactory knows are read from the source of its argument classes, which takes a fraction of a second
where importing them takes ten. What only the imported classes can tell is checked after.
"""

import ast
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError, did_you_mean

ACCELERATORS = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/davinci0", "/dev/dxg", "/dev/accel0", "/dev/dri")
"""Device files of NVIDIA, AMD, Ascend, WSL, Gaudi and Intel accelerators."""
LOGGERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "swanlab": ("swanlab",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
    "comet_ml": ("comet_ml",),
    "neptune": ("neptune",),
    "clearml": ("clearml",),
    "dvclive": ("dvclive",),
}
"""`report_to` → the Python packages of which one must be there."""
_SOURCES = (
    ("uni_dpo", ("objective.py", "llamafactory/arguments.py")),
    ("llamafactory", ("hparams",)),
    ("transformers", ("training_args.py", "training_args_seq2seq.py")),
)


@dataclass(frozen=True)
class KnownSetting:
    """One setting as its source has it: name, the class it stands in, default and help as text."""

    name: str
    group: str
    default: str
    help: str


def known_settings() -> list[KnownSetting]:
    """The settings of Uni-DPO, then LlamaFactory's, then transformers'; none of a package that is not installed."""
    found: dict[str, KnownSetting] = {}
    for package, places in _SOURCES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for place in places:
                path = Path(folder, place)
                for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
                    for setting in _fields(file):
                        found.setdefault(setting.name, setting)
    return list(found.values())


def _fields(file: Path) -> Iterator[KnownSetting]:
    """The fields of a file's argument classes."""
    if not file.is_file():
        return
    classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    fields = {
        (group.name, item.target.id): item.value
        for group in classes
        for item in group.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    constants = {f"{group}.{name}": ast.unparse(value) for (group, name), value in fields.items() if value is not None}
    endings = ("Arguments", "Argument")
    settable = {group.name for group in classes if group.decorator_list and group.name.endswith(endings)}
    for (group, name), value in fields.items():
        options = {word.arg: word.value for word in value.keywords} if isinstance(value, ast.Call) else {}
        init = options.get("init")
        if group in settable and not (isinstance(init, ast.Constant) and init.value is False):
            default = options.get("default", None if options else value)
            text = "" if default is None else ast.unparse(default)
            yield KnownSetting(name, group, constants.get(text, text), _help(options.get("metadata")))


def _help(metadata: ast.expr | None) -> str:
    if isinstance(metadata, ast.Dict):
        for key, value in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "help" and isinstance(value, ast.Constant):
                return str(value.value)
    return ""


def help_lines() -> list[str]:
    """What `uni-dpo train --help` prints: Uni-DPO's settings with their meaning, then the names of all others."""
    settings = known_settings()
    ours = [setting for setting in settings if setting.group in ("ObjectiveArguments", "UniDPOFinetuningArguments")]
    lines = [
        "usage: uni-dpo train CONFIG.yaml [key=value …] [--verbose], or --key value flags",
        "",
        "Train with LlamaFactory. `pref_loss: uni_dpo` turns Uni-DPO on; its settings:",
    ]
    for setting in ours:
        lines.append(f"  {setting.name} (default {setting.default})")
        lines += [f"      {line}" for line in _wrapped(setting.help, 90)]
    for group in dict.fromkeys(setting.group for setting in settings if setting not in ours):
        names = " ".join(setting.name for setting in settings if setting.group == group)
        lines += ["", f"{group}:", *(f"  {line}" for line in _wrapped(names, 100))]
    return [*lines, "", "`llamafactory-cli train --help` says what LlamaFactory's own settings mean."]


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def check_early(given: Mapping[str, Any] | Sequence[str]) -> None:
    """Refuse what can be seen to be wrong in the settings and on this machine without importing anything heavy.

    Args:
        given: a configuration's mapping, or `--key value` flags.

    Raises:
        UniDPOError: one line for each fault.
    """
    settings = dict(given) if isinstance(given, Mapping) else flags(given)
    faults = [*_unknown(settings), *_conditions(settings)]
    if faults:
        raise UniDPOError("\n".join(faults))


def flags(given: Sequence[str]) -> dict[str, Any]:
    """`--key value` flags as settings, their values as text."""
    settings: dict[str, Any] = {}
    name = ""
    for word in given:
        if word.startswith("--"):
            name, has_value, value = word.removeprefix("--").partition("=")
            settings[name] = value if has_value else "true"
        elif name:
            settings[name] = word
    return settings


def _unknown(settings: Mapping[str, Any]) -> Iterator[str]:
    known = {setting.name for setting in known_settings()}
    allowed = {name for name in ("ALLOW_EXTRA_ARGS", "USE_MCA") if _is_true(os.environ.get(name))}
    if allowed or "model_name_or_path" not in known or "learning_rate" not in known:
        return
    for name in settings:
        plain = name.removeprefix("no_")
        if name not in known and plain not in known and name != "local_rank":
            yield f"{name}: unknown setting{did_you_mean(name, known)}"


def _conditions(settings: Mapping[str, Any]) -> Iterator[str]:
    """What this machine, its packages and its files do not allow."""
    if settings.get("pref_loss") == "uni_dpo" and _is_true(os.environ.get("USE_V1")):
        yield "USE_V1=1 starts LlamaFactory's version 1, which does not know pref_loss: uni_dpo; unset it"
    on_cpu = _is_true(settings.get("use_cpu")) or _is_true(settings.get("no_cuda"))
    for name in ("bf16", "fp16", "pure_bf16"):
        if _is_true(settings.get(name)) and not has_accelerator() and not (on_cpu and name == "bf16"):
            on_cpu_too = "use_cpu=true to compute in bfloat16 on the CPU, or bf16=false"
            remedy = on_cpu_too if name == "bf16" else f"{name}=false"
            yield f"{name}: true needs a GPU, and this machine shows none; set {remedy}"
    by_bnb = str(settings.get("quantization_method", "bnb")).lower() in ("bnb", "bitsandbytes")
    if settings.get("quantization_bit") and by_bnb and find_spec("bitsandbytes") is None:
        yield "quantization_bit: needs the package bitsandbytes, which is not installed: pip install bitsandbytes"
    if (fault := _deepspeed(settings.get("deepspeed"))) is not None:
        yield fault
    reporters = settings.get("report_to")
    for name in [reporters] if isinstance(reporters, str) else reporters or ():
        packages = LOGGERS.get(str(name), ())
        if packages and all(find_spec(package) is None for package in packages):
            missing = packages[0]
            yield f"report_to: {name} needs the package {missing}, which is not installed: pip install {missing}"
    if (fault := _unwritable(settings.get("output_dir"))) is not None:
        yield fault
    if (fault := _best_model(settings)) is not None:
        yield fault


def has_accelerator() -> bool:
    """Whether this machine shows an accelerator that a process may use, without asking torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") and not Path("/dev/davinci0").exists():
        return False
    return any(Path(device).exists() for device in ACCELERATORS) or os.uname().sysname == "Darwin"


def _deepspeed(value: Any) -> str | None:
    if not isinstance(value, str) or value.lstrip().startswith("{"):
        return None
    if not Path(value).is_file():
        return f"deepspeed: there is no file {value!r}; name a DeepSpeed configuration that is there, or leave it out"
    if find_spec("deepspeed") is None:
        return "deepspeed: the package is not installed: pip install deepspeed"
    return None


def _unwritable(output: Any) -> str | None:
    if not isinstance(output, str) or not output:
        return None
    path = Path(output).expanduser()
    if path.exists() and not path.is_dir():
        return f"output_dir: {output} is a file; name a folder"
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return f"output_dir: {output} cannot be written, since {there} does not allow it"
    return None


def _best_model(settings: Mapping[str, Any]) -> str | None:
    if not _is_true(settings.get("load_best_model_at_end")):
        return None
    evaluated, saved = (
        str(settings.get(name, default)) for name, default in (("eval_strategy", "no"), ("save_strategy", "steps"))
    )
    if saved in (evaluated, "best"):
        return None
    return (
        f"load_best_model_at_end: eval_strategy is {evaluated!r} and save_strategy is {saved!r}; set both to the same, "
        "as `steps` or `epoch`"
    )


def _is_true(value: Any) -> bool:
    return value is True or str(value).lower() in ("true", "1", "y", "yes")
