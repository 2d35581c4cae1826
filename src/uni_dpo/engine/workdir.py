"""The work directory: one append-only file per stage, a manifest that says what made them, and what is still to do."""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from uni_dpo.data.questions import Question
from uni_dpo.engine.config import STAGES, EngineConfig
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Usage
from uni_dpo.storage import read_json
from uni_dpo.storage.identity import contents, difference, digest
from uni_dpo.storage.rowlog import Row, RowLog, log_lines
from uni_dpo.storage.writing import holding, write_text


class StageLog(RowLog):
    """Rows of one stage, appended batch by batch, each batch closed by a commit line with what it cost.

    What stands after the last complete commit line is dropped on opening, so a batch is there as a whole or not at
    all, and no cost is counted twice.
    """

    def __init__(self, path: Path) -> None:
        self.usage = Usage()
        super().__init__(path)

    def _read(self) -> int:
        batch: list[Row] = []
        committed = 0
        for row, end in log_lines(self.path):
            if row is None:
                break
            if "commit" not in row:
                batch.append(row)
                continue
            self.rows.update((done["id"], done) for done in batch)
            self.usage.add(Usage(**row["commit"]))
            batch, committed = [], end
        return committed

    def commit(self, rows: Sequence[Row], usage: Usage) -> None:
        """Write a finished batch through to the disk, with what it cost."""
        self._write([*rows, {"commit": asdict(usage)}])
        self.rows.update((row["id"], row) for row in rows)
        self.usage.add(usage)
        self._note()

    def succeeded(self) -> dict[str, Row]:
        """Return the rows that are no failures, by id."""
        return {key: row for key, row in self.rows.items() if "failed" not in row}


class WorkDir:
    """Paths inside a work directory, and its manifest."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.dataset = self.folder / "dataset"
        self.images = self.dataset / "images"
        self.debug = self.folder / "debug"
        self.manifest_path = self.folder / "manifest.json"

    def stage_path(self, number: int) -> Path:
        """Return the file of a stage's rows."""
        return self.folder / f"{number}-{STAGES[number]}.jsonl"

    def aside_path(self, number: int) -> Path:
        """Return the file of a stage's unusable replies."""
        return self.folder / "aside" / self.stage_path(number).name

    def manifest(self) -> dict[str, Any]:
        """Return what was written last; empty for a new directory."""
        return read_json(self.manifest_path, "take another --work-dir")

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest as a whole."""
        write_text(self.manifest_path, json.dumps(manifest, indent=2, ensure_ascii=False, default=str) + "\n")

    def locked(self) -> AbstractContextManager[None]:
        """Hold the directory: a second run on it is refused, so that two runs never mix their rows.

        A run that left nothing in it takes the directories that it made away again.
        """
        return holding(self.folder / ".lock", str(self.folder))


Stages = dict[str, dict[str, Any]]
"""Stage → its `fingerprint`, the `settings` behind it, and once it ran its `counts`: the manifest's entry."""


def plan_stages(config: EngineConfig, questions: Collection[Question], known: Mapping[str, Any]) -> Stages:
    """Return what each stage depends on: its own settings and everything before it, down to the input's digest.

    Where `known` is of a version that did not look into the images, neither does this.
    """
    stages: Stages = {}
    fingerprint = source = digest([question.to_row() for question in questions])
    shown = [path for question in questions for path in question.images if Path(path).is_file()]
    looked = "seen_images" in known.get(STAGES[0], {}).get("settings", {"seen_images": ""})
    for stage in STAGES:
        settings = config.describe(stage)
        if stage == STAGES[0]:
            settings |= {"questions": source} | ({"seen_images": digest(contents(shown))} if shown and looked else {})
        settings = json.loads(json.dumps(settings, default=str))
        fingerprint = digest([fingerprint, settings])
        stages[stage] = {"fingerprint": fingerprint, "settings": settings}
    return stages


def settle_stages(
    planned: Stages, known: Mapping[str, Any], work: WorkDir, only: int | None, continue_from: int | None
) -> Stages:
    """Return the manifest's entries for a run: planned ones, and known ones of stages that are not touched.

    Stale stages that the caller asked for have their files set apart; they will be done again.

    Args:
        known: entries of the manifest that is there.
        only, continue_from: `--run-stage` and `--continue-from-stage`.

    Raises:
        UniDPOError: a stage that the run needs is stale and was not asked for; the message says what changed.
    """
    stale = _stale(planned, known, work)
    redone = [n for n in stale if n == only or (continue_from is not None and n >= continue_from)]
    left = [n for n in stale if n not in redone]
    if left and (only is None or only > left[0]):
        lines = "\n".join(f"  stage {n} ({STAGES[n]}): {stale[n]}" for n in left)
        raise UniDPOError(
            f"the config does not fit what is in {work.folder}; stale now:\n{lines}\n"
            f"run with --continue-from-stage {left[0]} to do them again (their files are kept under another name), "
            "or take another --work-dir"
        )
    for number in redone:
        path, fingerprint = work.stage_path(number), known.get(STAGES[number], {}).get("fingerprint", "unknown")
        path.replace(path.with_stem(f"{path.stem}.stale-{fingerprint[:8]}"))  # kept: it may have cost much
    return {
        stage: known[stage] if number in left or _same(planned, known, stage) else planned[stage]
        for number, stage in enumerate(STAGES)
    }


def _stale(planned: Stages, known: Mapping[str, Any], work: WorkDir) -> dict[int, str]:
    """Stages whose rows were made by other settings, and what differs. Pairs are always made anew."""
    stale = {}
    for number, stage in enumerate(STAGES):
        if work.stage_path(number).is_file() and not _same(planned, known, stage):
            if stage in known:
                changed = difference(known[stage]["settings"], planned[stage]["settings"])
                stale[number] = changed or "an earlier stage changed"
            else:
                stale[number] = "no manifest says what made its rows"
    return stale


def _same(planned: Stages, known: Mapping[str, Any], stage: str) -> bool:
    return bool(known.get(stage, {}).get("fingerprint") == planned[stage]["fingerprint"])
