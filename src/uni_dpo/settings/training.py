"""What of a training configuration will not work here, said before torch, transformers or LlamaFactory is imported.

The settings that LlamaFactory and TRL know are read from the source of their argument classes.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from uni_dpo.errors import did_you_mean
from uni_dpo.settings.losses import STOCK, LossWeights, read_losses, read_trl_losses
from uni_dpo.settings.options import as_number, parts_of, range_fault
from uni_dpo.settings.reading import SettingsError, is_config, located, override, read_mapping
from uni_dpo.settings.schema import Schema, schema_of_known
from uni_dpo.settings.sources import RANGES, TRAIN, TRL_DPO, KnownSetting, Places, known_settings, known_templates

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
CHECKPOINTS = ("model_name_or_path", "ref_model", "reward_model")
"""Settings that name a model."""
ADAPTERS = ("adapter_name_or_path", "ref_model_adapters", "reward_model_adapters")
"""Settings that name adapters, several with commas between them."""
METRIC_GROUPS = ("rewards", "logps", "logits", "uni_dpo")
"""What the names of an evaluation's metrics begin with, beside `loss`."""
OBJECTIVE = ("ObjectiveArguments", "LedgerArguments", "UniDPOFinetuningArguments")
"""The classes of Uni-DPO's own settings, whose ranges stand in their types."""


def help_lines() -> list[str]:
    """Give what `uni-dpo train --help` prints: Uni-DPO's settings with their meaning, then the names of all others."""
    settings = known_settings()
    ours = [setting for setting in settings if setting.group in OBJECTIVE]
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


def check_early(given: Mapping[str, Any] | Sequence[str], places: Places = TRAIN) -> None:
    """Refuse what can be seen to be wrong in the settings and on this machine without importing anything heavy.

    Args:
        given: a configuration's mapping, or `--key value` flags.
        places: whose settings they are.

    Raises:
        SettingsError: one line for each fault.
    """
    known = {setting.name: setting for setting in known_settings(places)}
    settings = dict(given) if isinstance(given, Mapping) else flags(given, places)
    faults = [
        *_unknown(settings, known),
        *setting_faults(settings, known, as_text=not isinstance(given, Mapping)),
        *_conditions(settings),
    ]
    if faults:
        raise SettingsError(faults)


def check_trl(arguments: Sequence[str]) -> None:
    """Refuse what can be seen to be wrong in the arguments of `uni-dpo trl-dpo` without importing TRL.

    Args:
        arguments: CONFIG.yaml and `key=value`, or TRL's flags, `--config CONFIG.yaml` among them.

    Raises:
        UniDPOError: one line for each fault.
    """
    words = list(arguments)
    if {"-h", "--help"} & {*words}:
        return
    given: Mapping[str, Any] = {}
    if words and is_config(words[0]):
        given, words = override(read_mapping(words[0]), words[1:]), []
    elif "--config" in words[:-1]:
        place = words.index("--config")
        given = read_mapping(words[place + 1])
        del words[place : place + 2]
    with located(given):
        check_early({name: value for name, value in given.items() if name != "env"}, TRL_DPO)
    check_early(words, TRL_DPO)


def setting_faults(
    settings: Mapping[str, Any],
    known: Mapping[str, KnownSetting],
    ranges: Mapping[str, Sequence[object]] = RANGES,
    *,
    as_text: bool = False,
) -> Iterator[tuple[str, str]]:
    """Yield every value that is not of its setting's type or range, with what is wrong.

    Args:
        settings: names and values.
        known: the settings of the argument classes, by name.
        ranges: of settings whose types have none.
        as_text: whether values are the texts of `--key value` flags.
    """
    for name, value in settings.items():
        if name == "pref_loss" and name in known and LossWeights in parts_of(known[name].kind)[0]:
            yield from _loss_faults(known[name], value)
        elif name == "loss_type" and name in known and known[name].group == "TRLUniDPOConfig" and not as_text:
            yield from _trl_loss_faults(value, settings.get("loss_weights"))
        elif name in known and (fault := _value_fault(known[name], value, ranges.get(name, ()), as_text)):
            yield name, fault


def _loss_faults(setting: KnownSetting, value: Any) -> Sequence[tuple[str, str]]:
    literal = next(part for part in parts_of(setting.kind)[0] if get_origin(part) is Literal)
    try:
        read_losses(value, get_args(literal))
    except SettingsError as error:
        return error.faults
    return ()


def _trl_loss_faults(loss_type: Any, weights: Any) -> Sequence[tuple[str, str]]:
    try:
        read_trl_losses(loss_type, weights)
    except SettingsError as error:
        return error.faults
    return ()


def _value_fault(setting: KnownSetting, value: Any, ranges: Sequence[object], as_text: bool) -> str | None:
    parts, bounds = parts_of(setting.kind)
    plain = {*parts} - {type(None)}
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value!r} is not a finite number"
    choices = [str(choice) for part in parts if get_origin(part) is Literal for choice in get_args(part)]
    if choices and isinstance(value, str) and value not in choices:
        return f"{value!r} is none of its values{did_you_mean(value, choices) or '; known: ' + ', '.join(choices)}"
    if plain == {bool} and not isinstance(value, bool | None) and not (as_text and isinstance(value, str)):
        return f"true or false is expected, not {value!r}"
    if not plain or not plain <= {int, float} or (value is None and type(None) in parts):
        return None
    number = as_number(value)
    if number is None or not math.isfinite(number):
        return f"{value!r} is not a finite number"
    if plain == {int} and number != int(number):
        return f"a whole number is expected, not {value!r}"
    return range_fault(number if isinstance(value, str) else value, bounds or ranges)


def flags(given: Sequence[str], places: Places = TRAIN) -> dict[str, Any]:
    """Read `--key value` flags as settings, their values as text.

    A key may be cut short, or have hyphens, as argparse takes it.
    """
    known = {setting.name for setting in known_settings(places)}
    settings: dict[str, Any] = {}
    name = ""
    for word in given:
        if word.startswith("--"):
            name, has_value, value = word.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            longer = [setting for setting in known if setting.startswith(name)]
            name = longer[0] if name not in known and len(longer) == 1 else name
            settings[name] = value if has_value else "true"
        elif name:
            settings[name] = word
    return settings


def _unknown(settings: Mapping[str, Any], known: Mapping[str, KnownSetting]) -> Iterator[tuple[str, str]]:
    allowed = {name for name in ("ALLOW_EXTRA_ARGS", "USE_MCA") if is_true(os.environ.get(name))}
    if allowed or "model_name_or_path" not in known or "learning_rate" not in known:
        return
    for name in settings:
        plain = str(name).removeprefix("no_")
        if name not in known and plain not in known and name != "local_rank":
            yield str(name), f"unknown setting{did_you_mean(name, known)}"


def _conditions(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What this machine, its packages and its files do not allow."""
    loss = settings.get("pref_loss", "sigmoid")
    if is_true(os.environ.get("USE_V1")) and loss not in STOCK:
        yield "", f"USE_V1=1 starts LlamaFactory's version 1, which does not know pref_loss: {loss}; unset it"
    on_cpu = is_true(settings.get("use_cpu")) or is_true(settings.get("no_cuda"))
    for name in ("bf16", "fp16", "pure_bf16"):
        if is_true(settings.get(name)) and not has_accelerator() and not (on_cpu and name == "bf16"):
            on_cpu_too = "use_cpu=true to compute in bfloat16 on the CPU, or bf16=false"
            remedy = on_cpu_too if name == "bf16" else f"{name}=false"
            yield name, f"true needs a GPU, and this machine shows none; set {remedy}"
    by_bnb = str(settings.get("quantization_method", "bnb")).lower() in ("bnb", "bitsandbytes")
    if settings.get("quantization_bit") and by_bnb and find_spec("bitsandbytes") is None:
        yield "quantization_bit", "needs the package bitsandbytes, which is not installed: pip install bitsandbytes"
    if (fault := _template(settings)) is not None:
        yield "template", fault
    for name in (*CHECKPOINTS, *ADAPTERS, "resume_from_checkpoint"):
        named = settings.get(name)
        several = named.split(",") if isinstance(named, str) and name in ADAPTERS else [named]
        for one in named if isinstance(named, list) else several:
            if (fault := _no_folder(one) or _no_adapter(one, name, settings)) is not None:
                yield name, fault
    if (fault := _deepspeed(settings.get("deepspeed"))) is not None:
        yield "deepspeed", fault
    reporters = settings.get("report_to")
    for reporter in reporters if isinstance(reporters, list) else [reporters]:
        packages = LOGGERS.get(str(reporter), ())
        if packages and all(find_spec(package) is None for package in packages):
            missing = packages[0]
            yield "report_to", f"{reporter} needs the package {missing}, which is not installed: pip install {missing}"
    if (fault := _unwritable(settings.get("output_dir"))) is not None:
        yield "output_dir", fault
    if (fault := _no_such_metric(settings)) is not None:
        yield "metric_for_best_model", fault
    if (fault := _best_model(settings)) is not None:
        yield "load_best_model_at_end", fault


def has_accelerator() -> bool:
    """Tell whether this machine shows an accelerator that a process may use, without asking torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") and not Path("/dev/davinci0").exists():
        return False
    return any(Path(device).exists() for device in ACCELERATORS) or os.uname().sysname == "Darwin"


def _template(settings: Mapping[str, Any]) -> str | None:
    """Name a template that is none, or that makes LlamaFactory ask for an image processor that is not there."""
    templates = known_templates()
    name = settings.get("template")
    if name is None or not templates:
        return None
    if str(name) not in templates:
        return f"LlamaFactory has none called {name!r}{did_you_mean(name, templates)}"
    folder = Path(str(settings.get("model_name_or_path")))
    if not templates[str(name)] or settings.get("stage") == "pt" or not folder.is_dir():
        return None
    if any(folder.glob("*processor_config.json")):
        return None
    return (
        f"{name} reads images, and {folder} has no image processor; for a text-only model set `template` to its own, "
        "as `template: qwen` for Qwen2 and Qwen2.5 (docs/models.md)"
    )


def _no_folder(model: Any) -> str | None:
    """Name a checkpoint that can only be a folder, and is none; a hub name has one slash at most."""
    path = Path(str(model)).expanduser()
    if not isinstance(model, str) or "://" in model:
        return None
    if not (path.is_absolute() or model[:1] == "." or model.count("/") > 1):
        return None
    return None if path.is_dir() else f"there is no folder {model}; name a checkpoint that is there, or its hub name"


def _no_adapter(path: Any, name: str, settings: Mapping[str, Any]) -> str | None:
    """Name a folder that should hold an adapter and holds none."""
    if name not in ADAPTERS or not isinstance(path, str) or settings.get("adapter_folder"):
        return None
    folder = Path(path).expanduser()
    if not folder.is_dir() or (folder / "adapter_config.json").is_file():
        return None
    return f"there is no adapter_config.json in {path}; name an adapter's folder (a whole model is model_name_or_path)"


def _no_such_metric(settings: Mapping[str, Any]) -> str | None:
    """Name a metric that no evaluation of preferences gives; those of several datasets have its name before theirs."""
    metric = settings.get("metric_for_best_model")
    if settings.get("pref_loss") != "uni_dpo" or not isinstance(metric, str):
        return None
    if metric.removeprefix("eval_").endswith("loss") or any(f"{group}/" in metric for group in METRIC_GROUPS):
        return None
    return f"{metric!r} is no metric of an evaluation; name eval_loss, eval_rewards/accuracies or eval_rewards/margins"


def _deepspeed(value: Any) -> str | None:
    if not isinstance(value, str) or value.lstrip().startswith("{"):
        return None
    if not Path(value).is_file():
        return f"there is no file {value!r}; name a DeepSpeed configuration that is there, or leave it out"
    if find_spec("deepspeed") is None:
        return "the package is not installed: pip install deepspeed"
    return None


def _unwritable(output: Any) -> str | None:
    if not isinstance(output, str) or not output:
        return None
    path = Path(output).expanduser()
    if path.exists() and not path.is_dir():
        return f"{output} is a file; name a folder"
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return f"{output} cannot be written, since {there} does not allow it"
    return None


def _best_model(settings: Mapping[str, Any]) -> str | None:
    if not is_true(settings.get("load_best_model_at_end")):
        return None
    evaluated, saved = (
        str(settings.get(name, default)) for name, default in (("eval_strategy", "no"), ("save_strategy", "steps"))
    )
    if saved in (evaluated, "best"):
        return None
    return f"eval_strategy is {evaluated!r} and save_strategy is {saved!r}; set both to the same, as `steps` or `epoch`"


def is_true(value: Any) -> bool:
    """Tell whether a setting is on, also where a flag gave it as a text."""
    return value is True or str(value).lower() in ("true", "1", "y", "yes")


def train_schema() -> Schema:
    """Make the JSON schema of `uni-dpo train`'s configuration."""
    return schema_of_known(known_settings(TRAIN), RANGES)


def trl_dpo_schema() -> Schema:
    """Make the JSON schema of `uni-dpo trl-dpo`'s configuration; `env` sets environment variables."""
    schema = schema_of_known(known_settings(TRL_DPO), RANGES)
    schema["properties"]["env"] = {"type": "object"}
    return schema
