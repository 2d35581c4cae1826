"""The work directory: one append-only file per stage, and a manifest that says what made them."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Usage
from uni_dpo.storage.locks import holding
from uni_dpo.storage.rowlog import Row, RowLog, log_lines
from uni_dpo.storage.writing import write_text


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
        """The rows that are no failures, by id."""
        return {key: row for key, row in self.rows.items() if "failed" not in row}


class WorkDir:
    """Paths inside a work directory, and its manifest."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.dataset = self.folder / "dataset"
        self.images = self.dataset / "images"
        self.debug = self.folder / "debug"
        self.manifest_path = self.folder / "manifest.json"

    def stage_path(self, number: int, stage: str) -> Path:
        """The file of a stage's rows."""
        return self.folder / f"{number}-{stage}.jsonl"

    def aside_path(self, number: int, stage: str) -> Path:
        """The file of a stage's unusable replies."""
        return self.folder / "aside" / f"{number}-{stage}.jsonl"

    def set_apart(self, number: int, stage: str, fingerprint: str) -> None:
        """Give a stale stage's file another name: what it cost may have been much."""
        path = self.stage_path(number, stage)
        if path.is_file():
            path.replace(path.with_name(f"{number}-{stage}.stale-{fingerprint[:8]}.jsonl"))

    def manifest(self) -> dict[str, Any]:
        """What was written last; empty for a new directory."""
        if not self.manifest_path.is_file():
            return {}
        try:
            manifest = json.loads(self.manifest_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UniDPOError(f"{self.manifest_path} is damaged ({error}); take another --work-dir") from error
        return dict(manifest)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest as a whole."""
        write_text(self.manifest_path, json.dumps(manifest, indent=2, ensure_ascii=False, default=str) + "\n")

    def locked(self) -> AbstractContextManager[None]:
        """Hold the directory: a second run on it is refused, so that two runs never mix their rows.

        A run that left nothing in it takes the directories that it made away again.
        """
        return holding(self.folder / ".lock", str(self.folder))
