"""The work directory: one append-only file per stage, and a manifest that says what made them."""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from uni_dpo.engine.records import Row
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Usage
from uni_dpo.storage.writing import write_text


class StageLog:
    """Rows of one stage, appended batch by batch, each batch closed by a commit line.

    A process may die at any byte: what stands after the last complete commit line is dropped on opening, so
    a batch is there as a whole or not at all. A row given twice (a failure tried again) counts as last given.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        self.usage = Usage()
        if path.is_file():
            os.truncate(path, self._read())

    def _read(self) -> int:
        """Load every committed row; return the number of bytes they take."""
        batch: list[Row] = []
        position = committed = 0
        with self.path.open("rb") as lines:
            for line in lines:
                position += len(line)
                try:
                    row = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                if "commit" not in row:
                    batch.append(row)
                    continue
                self.rows.update((done["id"], done) for done in batch)
                self.usage.add(Usage(**row["commit"]))
                batch, committed = [], position
        return committed

    def append(self, rows: Sequence[Row], usage: Usage) -> None:
        """Write a finished batch through to the disk, with what it cost."""
        lines = [json.dumps(row, ensure_ascii=False) for row in [*rows, {"commit": asdict(usage)}]]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(("\n".join(lines) + "\n").encode("utf-8", errors="surrogatepass"))
            file.flush()
            os.fsync(file.fileno())
        self.rows.update((row["id"], row) for row in rows)
        self.usage.add(usage)

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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory: a second run on it is refused, so that two runs never mix their rows.

        A run that left nothing in it takes the directories that it made away again.
        """
        made = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ".lock"
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UniDPOError(f"{self.folder}: another run is at work in this directory") from None
            try:
                yield
            finally:
                with suppress(OSError):  # somebody else's file has come into one of them
                    if list(self.folder.iterdir()) == [path]:
                        path.unlink()
                        for folder in made:
                            folder.rmdir()
