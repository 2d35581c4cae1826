"""What of a training configuration will not work here, said before torch, transformers or LlamaFactory is imported.

The settings that LlamaFactory and TRL know are read from the source of their argument classes.
"""

import math
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args, get_origin

from uni_dpo.errors import did_you_mean
from uni_dpo.settings.losses import LossWeights, read_losses, read_trl_losses
from uni_dpo.settings.machine import is_true, machine_faults
from uni_dpo.settings.options import as_number, parts_of, range_fault
from uni_dpo.settings.reading import SettingsError, is_config, located, override, read_mapping
from uni_dpo.settings.schema import Schema, schema_of_known
from uni_dpo.settings.sources import RANGES, TRAIN, TRL_DPO, KnownSetting, Places, known_settings

_SAME = (
    ("model_name_or_path", "model", "model_id", "model_id_or_path", "model_path", "base_model", "pretrain"),
    ("dataset", "dataset_name", "dataset_path", "data_path", "train_file", "train_dataset"),
    ("output_dir", "output", "output_path", "save_path"),
    ("stage", "rlhf_type"),
    ("finetuning_type", "train_type", "tuner_type", "sft_type", "use_peft", "use_lora", "lora_enable"),
    ("pref_loss", "loss_type", "dpo_loss_type"),
    ("pref_beta", "beta", "dpo_beta"),
    ("pref_ftx", "rpo_alpha", "sft_weight"),
    ("dpo_label_smoothing", "label_smoothing"),
    ("lora_rank", "lora_r"),
    ("lora_target", "target_modules", "lora_target_modules"),
    ("cutoff_len", "max_length", "max_seq_length", "model_max_length", "max_len", "max_prompt_length"),
    ("image_max_pixels", "max_pixels", "image_resolution"),
    ("image_min_pixels", "min_pixels"),
    ("flash_attn", "attn_impl", "attn_implementation"),
    ("bf16", "torch_dtype", "dtype"),
    ("quantization_bit", "quant_bits", "load_in_4bit", "load_in_8bit", "bits"),
    ("freeze_vision_tower", "freeze_vit"),
    ("freeze_multi_modal_projector", "freeze_aligner", "freeze_merger"),
    ("freeze_language_model", "freeze_llm"),
    ("num_train_epochs", "num_epochs", "max_epochs", "epochs"),
    ("learning_rate", "lr"),
    ("per_device_train_batch_size", "batch_size", "micro_batch_size", "micro_train_batch_size"),
    ("val_size", "split_dataset_ratio"),
    ("preprocessing_num_workers", "dataset_num_proc"),
    ("eval_strategy", "evaluation_strategy"),
    ("ref_model", "ref_model_name_or_path", "ref_pretrain"),
)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: what it is called here, or what is spelt like it."""
    names = set(known)
    meant = next((one for same in _SAME if name.lower() in same for one in same if one in names), None)
    return f"; here it is called {meant!r}" if meant else did_you_mean(name, names)


_wrapped = partial(textwrap.wrap, break_long_words=False, break_on_hyphens=False)
OBJECTIVE = ("ObjectiveArguments", "LedgerArguments", "UniDPOFinetuningArguments")
"""The classes of Uni-DPO's own settings, whose ranges stand in their types."""
_MAY_BE_NUMBERS = ("run_name", "dataset", "eval_dataset")
"""Texts: a run may be called by a number, and datasets are looked up by their names later."""


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


def check_early(given: Mapping[str, Any] | Sequence[str], places: Places = TRAIN) -> None:
    """Refuse what can be seen to be wrong in a mapping or in flags, and on this machine; nothing heavy is imported.

    Raises:
        SettingsError: one line for each fault.
    """
    known = {setting.name: setting for setting in known_settings(places)}
    settings = dict(given) if isinstance(given, Mapping) else flags(given, places)
    faults = [
        *_unknown(settings, known),
        *setting_faults(settings, known, as_text=not isinstance(given, Mapping)),
        *machine_faults(settings),
    ]
    if faults:
        raise SettingsError(faults)


def generation_warning(given: Mapping[str, Any] | Sequence[str]) -> str:
    """Say that `max_length`, by which TRL bounds training rows, bounds generation in LlamaFactory; else nothing."""
    settings = given if isinstance(given, Mapping) else flags(given)
    generates = settings.get("stage") == "ppo" or any(
        is_true(settings.get(name)) for name in ("predict_with_generate", "do_predict")
    )
    if generates or settings.get("max_length") is None:
        return ""
    default = next(setting.default for setting in known_settings() if setting.name == "cutoff_len")
    row = settings.get("cutoff_len", default)
    return f"max_length bounds generated answers, and this training generates none; rows are cut at cutoff_len: {row}"


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

    Those of `--key value` flags are texts. `ranges` are those of settings whose types have none.
    """
    for name, value in settings.items():
        if name == "pref_loss" and name in known and LossWeights in parts_of(known[name].kind)[0]:
            literal = next(part for part in parts_of(known[name].kind)[0] if get_origin(part) is Literal)
            yield from _faults_of(read_losses, value, get_args(literal))
        elif name == "loss_type" and name in known and known[name].group == "TRLUniDPOConfig" and not as_text:
            yield from _faults_of(read_trl_losses, value, settings.get("loss_weights"))
        elif name in known and (fault := _value_fault(known[name], value, ranges.get(name, ()), as_text)):
            yield name, fault


def _faults_of(read: Callable[..., object], *given: Any) -> Sequence[tuple[str, str]]:
    try:
        read(*given)
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
    if value is False and "no" in choices:
        return 'YAML reads a bare no as false; write "no" in quotation marks'
    if plain == {bool} and not isinstance(value, bool | None) and not (as_text and isinstance(value, str)):
        return f"true or false is expected, not {value!r}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if plain == {str} and is_number and setting.name not in _MAY_BE_NUMBERS:
        return f"a text is expected, not {value!r}; write it in quotation marks"
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
            yield str(name), f"unknown setting{nearest(str(name), known)}"


def train_schema() -> Schema:
    """Make the JSON schema of `uni-dpo train`'s configuration."""
    return schema_of_known(known_settings(TRAIN), RANGES)


def trl_dpo_schema() -> Schema:
    """Make the JSON schema of `uni-dpo trl-dpo`'s configuration; `env` sets environment variables."""
    schema = schema_of_known(known_settings(TRL_DPO), RANGES)
    schema["properties"]["env"] = {"type": "object"}
    return schema
