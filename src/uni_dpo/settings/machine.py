"""What of a training this machine, its packages and its files do not allow, told without torch or transformers."""

import json
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from uni_dpo.errors import did_you_mean
from uni_dpo.settings.losses import STOCK
from uni_dpo.settings.sources import known_templates

Training = Mapping[str, Any]
"""The settings of a training, by name."""
Faults = Iterator[tuple[str, str]]
"""Settings, each with what is wrong with it."""

ACCELERATORS = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/davinci0", "/dev/dxg", "/dev/accel0", "/dev/dri")
"""Device files of NVIDIA, AMD, Ascend, WSL, Gaudi and Intel accelerators."""
LOGGERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "comet_ml": ("comet_ml",),
    **{name: (name,) for name in ("wandb", "swanlab", "trackio", "mlflow", "neptune", "clearml", "dvclive")},
}
"""`report_to` → the Python packages of which one must be there."""
ADAPTERS = ("adapter_name_or_path", "ref_model_adapters", "reward_model_adapters")
"""Settings that name adapters, several with commas between them."""


def machine_faults(settings: Training) -> Faults:
    """Yield the settings that cannot work here, each with what is wrong; see the checks below."""
    for check in (
        *(_version_1, _precision, _quantization, _template, _folders, _deepspeed),
        *(_work, reporter_faults, _output, _metric, _best_model),
    ):
        yield from check(settings)


def has_accelerator() -> bool:
    """Tell whether this machine shows an accelerator that a process may use, without asking torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") and not Path("/dev/davinci0").exists():
        return False
    return any(Path(device).exists() for device in ACCELERATORS) or os.uname().sysname == "Darwin"


def existing(path: Path) -> Path:
    """Return the path itself where it exists, else the nearest folder above it that does."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def folder_fault(name: str) -> str | None:
    """Say why nothing can be written into the folder `name`, or nothing where it can be made and written to."""
    path = Path(name).expanduser()
    there = existing(path)
    if there == path and not path.is_dir():
        return f"{name} is a file; name a folder"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return f"{name} cannot be written, since {there} does not allow it"
    return None


def is_true(value: Any) -> bool:
    """Tell whether a setting is on, also where a flag gave it as a text."""
    return value is True or str(value).lower() in ("true", "1", "y", "yes")


def _version_1(settings: Training) -> Faults:
    loss = settings.get("pref_loss", "sigmoid")
    if is_true(os.environ.get("USE_V1")) and loss not in STOCK:
        yield "", f"USE_V1=1 starts LlamaFactory's version 1, which does not know pref_loss: {loss}; unset it"


def _precision(settings: Training) -> Faults:
    on_cpu = is_true(settings.get("use_cpu")) or is_true(settings.get("no_cuda"))
    for name in ("bf16", "fp16", "pure_bf16", "tf32"):
        if is_true(settings.get(name)) and not has_accelerator() and not (on_cpu and name == "bf16"):
            on_cpu_too = "use_cpu=true to compute in bfloat16 on the CPU, or bf16=false"
            remedy = on_cpu_too if name == "bf16" else f"{name}=false"
            yield name, f"true needs a GPU, and this machine shows none; set {remedy}"
    if settings.get("fsdp") and not has_accelerator():
        yield "fsdp", "shards a model over GPUs, and this machine shows none; leave it out"


def _quantization(settings: Training) -> Faults:
    by_bnb = str(settings.get("quantization_method", "bnb")).lower() in ("bnb", "bitsandbytes")
    if settings.get("quantization_bit") and by_bnb and find_spec("bitsandbytes") is None:
        yield "quantization_bit", "needs the package bitsandbytes, which is not installed: pip install bitsandbytes"


def _template(settings: Training) -> Faults:
    """A template that is none, or that makes LlamaFactory ask for an image processor that is not there."""
    templates, name = known_templates(), str(settings.get("template"))
    if settings.get("template") is None or not templates:
        return
    if name not in templates:
        yield "template", f"LlamaFactory has none called {name!r}{did_you_mean(name, templates)}"
        return
    folder = Path(str(settings.get("model_name_or_path")))
    if not templates[name] or settings.get("stage") == "pt" or not folder.is_dir():
        return
    if not any(folder.glob("*processor_config.json")):
        yield (
            "template",
            f"{name} reads images, and {folder} has no image processor; for a text-only model set `template` to its "
            "own, as `template: qwen` for Qwen2 and Qwen2.5 (docs/models.md)",
        )


def _folders(settings: Training) -> Faults:
    """Checkpoints and adapters whose folders are not there, or hold none."""
    resumed = settings.get("resume_from_checkpoint")
    output = Path(str(settings.get("output_dir") or "trainer_output")).expanduser()  # as transformers has it
    if is_true(resumed) and not any(output.glob("checkpoint-*")):
        yield "resume_from_checkpoint", f"there is no checkpoint in {output}; leave it out to start anew"
    if isinstance(resumed, str) and resumed.lower() not in ("true", "false"):
        folder = Path(resumed).expanduser()
        if not folder.is_dir():
            yield "resume_from_checkpoint", f"there is no folder {resumed}; name a checkpoint of that training"
        elif not (folder / "trainer_state.json").is_file():
            advice = "name one that training wrote, such as OUTPUT/checkpoint-100"
            yield "resume_from_checkpoint", f"there is no trainer_state.json in {resumed}; {advice}"
    for name in ("model_name_or_path", "ref_model", "reward_model", *ADAPTERS):
        named = settings.get(name)
        several = named.split(",") if isinstance(named, str) and name in ADAPTERS else [named]
        for one in named if isinstance(named, list) else several:
            if not isinstance(one, str):
                continue
            path = Path(one).expanduser()
            # A hub name has one slash at most.
            is_folder = "://" not in one and (path.is_absolute() or one[:1] == "." or one.count("/") > 1)
            holds_adapter = name not in ADAPTERS or (path / "adapter_config.json").is_file()
            if is_folder and not path.is_dir():
                yield name, f"there is no folder {one}; name a checkpoint that is there, or its hub name"
            elif path.is_dir() and not holds_adapter and not settings.get("adapter_folder"):
                advice = "name an adapter's folder (a whole model is model_name_or_path)"
                yield name, f"there is no adapter_config.json in {one}; {advice}"


def _deepspeed(settings: Training) -> Faults:
    value = settings.get("deepspeed")
    if not isinstance(value, str) or value.lstrip().startswith("{"):
        return
    if not Path(value).is_file():
        yield "deepspeed", f"there is no file {value!r}; name a DeepSpeed configuration that is there, or leave it out"
    elif find_spec("deepspeed") is None:
        yield "deepspeed", "the package is not installed: pip install deepspeed"
    else:
        try:
            json.loads(Path(value).read_bytes())
        except ValueError as error:
            yield "deepspeed", f"{value} is not JSON ({error})"


def _work(settings: Training) -> Faults:
    """A whole configuration that asks for nothing: LlamaFactory would load the model and end."""
    asked = any(is_true(settings.get(name)) for name in ("do_train", "do_eval"))
    whole = settings.get("stage") == "dpo" and settings.get("pref_loss") == "uni_dpo" and "output_dir" in settings
    if whole and not asked and settings.get("tokenized_path") is None:
        yield "do_train", "is not set, so that nothing would be trained; set it to true"


def reporter_faults(settings: Training) -> Faults:
    """Loggers that are not installed, and several that are no list."""
    reporters = settings.get("report_to")
    for reporter in reporters if isinstance(reporters, list) else [reporters]:
        if "," in str(reporter):
            yield "report_to", f"{reporter!r} is no list; write [{', '.join(map(str.strip, str(reporter).split(',')))}]"
        packages = LOGGERS.get(str(reporter), ())
        if packages and all(find_spec(package) is None for package in packages):
            missing = packages[0]
            yield "report_to", f"{reporter} needs the package {missing}, which is not installed: pip install {missing}"


def _output(settings: Training) -> Faults:
    output = settings.get("output_dir")
    if isinstance(output, str) and output and (fault := folder_fault(output)):
        yield "output_dir", fault


def _metric(settings: Training) -> Faults:
    """A metric that no evaluation of preferences gives; those of several datasets have its name before theirs."""
    metric = settings.get("metric_for_best_model")
    if settings.get("pref_loss") != "uni_dpo" or not isinstance(metric, str):
        return
    groups = ("rewards/", "logps/", "logits/", "uni_dpo/")
    if not metric.removeprefix("eval_").endswith("loss") and not any(group in metric for group in groups):
        names = "eval_loss, eval_rewards/accuracies or eval_rewards/margins"
        yield "metric_for_best_model", f"{metric!r} is no metric of an evaluation; name {names}"


def _best_model(settings: Training) -> Faults:
    evaluated = str(settings.get("eval_strategy", "no"))
    saved = str(settings.get("save_strategy", "steps"))
    if is_true(settings.get("load_best_model_at_end")) and saved not in (evaluated, "best"):
        found = f"eval_strategy is {evaluated!r} and save_strategy is {saved!r}"
        yield "load_best_model_at_end", f"{found}; set both to the same, as `steps` or `epoch`"
