"""`uni-dpo trl-dpo`: what `trl dpo` does, with Uni-DPO's trainer, for texts and images.

On several GPUs: `accelerate launch -m uni_dpo.trl.launch ARGUMENTS`.
"""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from accelerate import PartialState
from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments, TrlParser, get_dataset
from trl.trainer.model_config import ModelConfig
from trl.trainer.utils import get_peft_config, get_quantization_config

from uni_dpo.errors import UniDPOError
from uni_dpo.models.checkpoint import Checkpoint, find_checkpoint
from uni_dpo.models.loading import load_processor, load_start
from uni_dpo.models.prompt import PromptStyle, detect_style
from uni_dpo.monitor.console import VERBOSE, readable
from uni_dpo.monitor.ledger import changed_settings, write_run_card
from uni_dpo.settings.machine import is_true
from uni_dpo.settings.reading import is_config, override, read_mapping
from uni_dpo.trainer_mixins import process_group, refuse_broken_flash_attention
from uni_dpo.trl.arguments import TRLUniDPOConfig
from uni_dpo.trl.data import (
    as_messages,
    check_images,
    check_pairs,
    check_places,
    check_scores,
    first_chosen,
    refuse_videos,
    with_image_lists,
)
from uni_dpo.trl.ledger import logger
from uni_dpo.trl.trainer import TRL_1, UniDPOTrainer

TABLES = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}


UNREAD = ("messages", "completion", "label")
"""Columns of other trainers, beside which TRL refuses pairs."""


@process_group()
def train(arguments: Sequence[str]) -> None:
    """Train as `trl dpo ARGUMENTS` would.

    Args:
        arguments: CONFIG.yaml and `key=value`, or TRL's flags and those of `TRLUniDPOConfig`, for which
            `--config FILE.yaml` gives defaults. The dataset may also be a file, or a folder that `save_to_disk` wrote.
            `--verbose` among them shows everything that TRL says, which otherwise goes to `OUTPUT/uni_dpo/train.log`.

    Raises:
        UniDPOError: an argument or the data cannot be used; no model has been loaded by then.
    """
    if "--verbose" in arguments:
        os.environ[VERBOSE] = "1"
    groups = parse([argument for argument in arguments if argument != "--verbose"])
    output = str(groups[1].output_dir)
    with readable(output) as file:
        _train(*groups)
    if not os.environ.get(VERBOSE) and PartialState().is_main_process:
        print(f"{output}: finished; what TRL said is in {file}", file=sys.stderr)


def _train(script: Any, settings: TRLUniDPOConfig, model_settings: Any, mixture: Any) -> None:
    if not model_settings.model_name_or_path:
        raise UniDPOError("model_name_or_path: name a checkpoint")
    if model_settings.attn_implementation == "flash_attention_2":
        refuse_broken_flash_attention()
    splits = _checked_splits(script, settings, mixture)
    named = model_settings.lora_target_modules
    if isinstance(named, str) and named.isidentifier():  # TRL makes a list of one a pattern of the whole name
        model_settings.lora_target_modules = [named]
    checkpoint = find_checkpoint(model_settings.model_name_or_path, revision=model_settings.model_revision)
    trusted = any(getattr(part, "trust_remote_code", False) for part in (settings, model_settings))
    processor = load_processor(checkpoint, trust_remote_code=trusted)
    _check_template(processor, model_settings.model_name_or_path, splits)
    for name, split in splits.items():
        check_places(split, getattr(processor, "image_token", None), name, added=TRL_1)
    model = _load_model(model_settings, checkpoint, settings.output_dir, trusted)
    try:
        trainer = UniDPOTrainer(
            model,
            args=settings,
            train_dataset=splits["train"],
            eval_dataset=splits.get("eval"),
            processing_class=processor,
            peft_config=get_peft_config(model_settings),
            about={"datasets": _names(script, splits), "changed": changed_settings(script, model_settings)},
        )
    except ValueError as error:
        if "arget modules" not in str(error) and "target_modules" not in str(error):
            raise
        raise UniDPOError(f"lora_target_modules: {error}") from None
    resumed = settings.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=is_true(resumed) or resumed)
    trainer.save_state()
    if "eval" in splits:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.save_model(settings.output_dir)
    if trainer.ledger is not None and trainer.is_world_process_zero():
        write_run_card(settings.output_dir, logger)
    if settings.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)


def _checked_splits(script: Any, settings: TRLUniDPOConfig, mixture: Any) -> dict[str, Any]:
    """The data to train on and those to evaluate on, whose scores and images can be used."""
    data = _load_data(script, mixture)
    splits = {"train": _split(data, script.dataset_train_split)}
    if settings.eval_strategy != "no":
        splits["eval"] = _split(data, script.dataset_test_split)
    for name, split in splits.items():
        refuse_videos(split, name)
        check_pairs(split, name)
    if settings.uses_uni_dpo:
        for name, split in splits.items():
            check_scores(split, settings.score_columns, name)
    for name, split in splits.items():
        check_images(split, name)
    return splits


def _names(script: Any, splits: Mapping[str, Any]) -> dict[str, str]:
    """What the rows of each split are called: by their file, or by dataset and split."""
    if not script.dataset_name:
        return {}
    path = Path(script.dataset_name)
    taken = {"train": script.dataset_train_split, "eval": script.dataset_test_split}
    return {name: path.name if path.suffix in TABLES else f"{path.name}/{taken[name]}" for name in splits}


def parse(arguments: Sequence[str]) -> tuple[Any, TRLUniDPOConfig, Any, Any]:
    """Tell where the data are, how to train, what model, and which mixture of datasets.

    Raises:
        UniDPOError: the file after `--config` cannot be read, or holds a setting that none of the four has.
    """
    arguments = list(arguments)
    if arguments and is_config(arguments[0]):
        given = override(read_mapping(arguments[0]), arguments[1:])
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".yaml") as file:
            yaml.safe_dump(dict(given), file)
            file.flush()
            return parse(["--config", file.name])
    parser = TrlParser((ScriptArguments, TRLUniDPOConfig, ModelConfig, DatasetMixtureConfig), prog="uni-dpo trl-dpo")
    try:
        return parser.parse_args_and_config(args=arguments)
    except UniDPOError:
        raise
    except (OSError, ValueError, TypeError, IndexError, yaml.YAMLError) as error:
        raise UniDPOError(f"trl-dpo: {error}") from error


def _load_data(script: Any, mixture: Any) -> Any:
    name = script.dataset_name
    if not mixture.datasets and not (name and isinstance(name, str)):
        raise UniDPOError("dataset_name: name a dataset, a file, or a folder that `uni-dpo data convert` wrote")
    try:
        return get_dataset(mixture) if mixture.datasets else _load_one(name, script)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        named = "the mixture of datasets" if mixture.datasets else f"dataset {name!r}"
        raise UniDPOError(f"{named} cannot be loaded: {error.__cause__ or error}") from error


def _load_one(name: str, script: Any) -> Any:
    path = Path(name)
    if path.suffix in TABLES and not path.exists():
        raise UniDPOError(f"dataset_name: there is no file {name}")
    if path.is_file() and path.suffix in TABLES:
        return datasets.load_dataset(TABLES[path.suffix], data_files=name, streaming=script.dataset_streaming)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return datasets.load_from_disk(name)
    return datasets.load_dataset(name, name=script.dataset_config, streaming=script.dataset_streaming)


def _split(data: Any, name: str) -> Any:
    if isinstance(data, dict) and name not in data:
        raise UniDPOError(f"the dataset has no split {name!r}; it has {', '.join(data)}")
    split = with_image_lists(as_messages(data[name] if isinstance(data, dict) else data))
    return split.remove_columns([column for column in UNREAD if column in (split.column_names or ())])


def _load_model(settings: Any, checkpoint: Checkpoint, output: str, trusted: bool) -> Any:
    quantization = get_quantization_config(settings)
    here = {"": PartialState().local_process_index} if torch.cuda.is_available() else None
    placed = {} if quantization is None else {"device_map": here, "quantization_config": quantization}
    return load_start(
        checkpoint,
        output,
        dtype=settings.dtype or "auto",
        attention=settings.attn_implementation,
        trust_remote_code=trusted,
        **placed,
    )


def _check_template(processor: Any, name: str, splits: Mapping[str, Any]) -> None:
    """Refuse turns for a template that takes none: TRL would train on empty prompts."""
    turns = any(isinstance(first_chosen(split), list) for split in splits.values())
    if turns and detect_style(processor, name) is PromptStyle.BASE:
        raise UniDPOError(
            f"{name}: has the template of a base checkpoint, which TRL cannot fill with turns; take the instruct "
            "checkpoint, `uni-dpo train`, or data with texts for prompt, chosen and rejected"
        )


if __name__ == "__main__":
    try:
        train(sys.argv[1:])
    except UniDPOError as error:
        sys.exit(f"error: {error}")
