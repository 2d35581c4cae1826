"""The ledger of a run: opened, cut where the run resumes, shown as a page, read for verdicts.

The texts and images of its pairs, and what was trained on what, are written beside it.
"""

import dataclasses
import hashlib
import io
import json
import logging
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.columns import ledger_folder, own_folder, record_file, texts_file
from uni_dpo.ledger.reading import evidence_of_rows
from uni_dpo.ledger.verdicts import GOOD, judge
from uni_dpo.ledger.writing import PairLedger, fingerprint, names_of, pair_texts, write_table
from uni_dpo.report.card import CARD, write_card
from uni_dpo.report.page import small_jpeg
from uni_dpo.report.run import PAGE, write_run_page
from uni_dpo.storage.identity import versions_of
from uni_dpo.storage.writing import replacing, write_text

_PACKAGES = ("uni-dpo", "llamafactory", "transformers", "torch", "trl", "peft", "accelerate", "deepspeed", "datasets")
_SECRET = ("_token", "api_key", "secret", "password", "webhook_url")
"""Parts of the names of settings that are written nowhere."""
_DERIVED = (
    "block_diag_attn", "compute_dtype", "device_map", "model_max_length", "logging_dir", "local_rank", "run_name",
)  # fmt: skip
"""Settings that a library works out for itself."""


def changed_settings(*groups: Any) -> dict[str, Any]:
    """Return the settings of dataclasses that differ from their defaults; no keys and tokens."""
    found = {}
    for group in groups:
        for item in dataclasses.fields(group):
            value = getattr(group, item.name, None)
            default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            named = item.init and item.name not in _DERIVED and not any(part in item.name for part in _SECRET)
            listed = isinstance(value, list) and (not value or ",".join(map(str, value)) == default)
            if named and value != default and not listed and isinstance(value, str | int | float | bool | list):
                found[item.name] = getattr(value, "value", value)
    return found


def _device(training_args: Any) -> str:
    """How many devices of what kind a training runs on."""
    kind = training_args.device.type
    name = torch.cuda.get_device_name() if kind == "cuda" else platform.processor() or platform.machine()
    return f"{training_args.world_size} × {kind} ({name})"


def open_ledger(training_args: Any, datasets: Iterable[Any], record: Mapping[str, Any]) -> PairLedger:
    """Return the ledger of a run; the first process writes the texts of its pairs, and the record.

    Args:
        training_args: transformers' arguments of the run.
        datasets: see `pair_texts`; the pairs of one that can only be read once are known by their keys.
        record: what was trained on what; see `llamafactory.run_context.run_record`. Versions and devices are added.
    """
    output = training_args.output_dir
    kept = KeptImages(output, writes=training_args.process_index == 0)
    readable = (dataset for dataset in datasets if hasattr(dataset, "texts") or hasattr(dataset, "__len__"))
    texts = pair_texts(readable, kept.path)
    if training_args.process_index == 0:
        write_table(texts, texts_file(output))
        machine = {"versions": versions_of(_PACKAGES), "device": _device(training_args)}
        whole = {**record, **machine, "pairs": len(texts), "fingerprint": fingerprint(texts)}
        write_text(record_file(output), json.dumps(whole, indent=1, default=str))
    return PairLedger(ledger_folder(output), names_of(texts), training_args.process_index, training_args.world_size)


MOST_IMAGES = 3_000
"""Different images that a page holds."""


class KeptImages:
    """Small copies of images that are stored inside a dataset, each once, until there are as many as a page holds.

    One process of a run writes them into the training's output folder.
    """

    def __init__(self, output: str | Path, *, writes: bool) -> None:
        self._folder, self._writes = own_folder(output) / "images", writes
        self._known: dict[str, str | None] = {}

    def path(self, content: bytes) -> str | None:
        """Return the file of an image, written by now; None where there is no room, or it is no readable image."""
        name = hashlib.sha256(content).hexdigest()[:20]
        if name not in self._known:
            if not self._writes or len(self._known) >= MOST_IMAGES:
                return None
            file = self._folder / f"{name}.jpg"
            if not file.is_file() and (small := small_jpeg(io.BytesIO(content))):
                with replacing(file) as temporary:
                    temporary.write_bytes(small)
            self._known[name] = str(file) if file.is_file() else None
        return self._known[name]


UNWRITTEN = (UniDPOError, OSError, ValueError, ArithmeticError)
"""Why a page or a card may not be written; none of it ends a training."""


class LedgerCallback(TrainerCallback):
    """Follows a run: its ledger is cut where it begins, at the checkpoint that it resumes from or at none.

    Its page is written at each checkpoint and at the end; one that cannot be written stops nothing. In between it is
    said what the numbers mean, one line for each metric that is to be watched.

    Args:
        ledger: of the first process, whose pairs stand for all.
        evidence: the settings of the run; see `Evidence`.
        steps: how often something is said; 0: never.
        logger: where it is said.
    """

    def __init__(self, ledger: PairLedger, evidence: Mapping[str, Any], steps: int, logger: logging.Logger) -> None:
        self._ledger, self._evidence, self._steps, self._logger = ledger, evidence, steps, logger
        self._said = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `PairLedger.cut`."""
        if state.is_world_process_zero:
            self._ledger.cut(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the page with few images, so that a checkpoint takes no longer."""
        self._write_page(args, state, images=200)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the page with its images."""
        self._ledger.flush()
        self._write_page(args, state, images=MOST_IMAGES)

    def _write_page(self, args: Any, state: Any, images: int) -> None:
        if not state.is_world_process_zero:
            return
        try:
            page = write_run_page([args.output_dir], images=images, log=state.log_history)
        except UNWRITTEN as error:
            self._logger.warning(f"{args.output_dir}/{PAGE} could not be written: {error}")
        else:
            self._logger.info(f"The page of this run: {page}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Judge where enough steps have been taken since the last time."""
        step, since = state.global_step, state.global_step - self._said
        due = since >= self._steps or (since and "train_runtime" in (logs or {}))
        if self._steps <= 0 or not state.is_world_process_zero or not due:
            return
        self._said = step
        verdicts = judge(evidence_of_rows(self._evidence, state.log_history, self._ledger.rows()))
        watched = [verdict for verdict in verdicts if verdict.state != GOOD]
        for verdict in watched:
            self._logger.info(f"step {step}, {verdict.state}: {verdict.sentence()}")
        if verdicts and not watched:
            self._logger.info(f"step {step}: {len(verdicts)} of {len(verdicts)} metrics are good.")


def write_run_card(output: str, logger: logging.Logger) -> None:
    """Write the model card of a run; one that cannot be written stops nothing."""
    try:
        write_card(output)
    except UNWRITTEN as error:
        logger.warning(f"{output}/{CARD} stays as it was: {error}")
