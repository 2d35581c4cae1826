"""What a run has finished, on disk after every answer, under the fingerprint of what it was asked."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uni_dpo.models.checkpoint import Checkpoint
from uni_dpo.storage.identity import file_digest
from uni_dpo.storage.rowlog import RowLog, log_lines
from uni_dpo.storage.writing import write_text

_READ_WHOLE = 32 * 2**20
"""Files of a checkpoint up to this many bytes count by content; larger ones, weights, by size and time."""
_MATTER = (
    "*.safetensors", "*.bin", "*.py", "*config.json", "*chat_template*", "tokenizer*", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


class Journal:
    """The answers to one benchmark under one fingerprint: lines of JSON, one file per process."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], rank: int = 0) -> None:
        """Open (or begin) the journal of `fingerprint` below `folder`."""
        text = json.dumps(fingerprint, indent=2, sort_keys=True, ensure_ascii=False)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:12]
        self.folder.mkdir(parents=True, exist_ok=True)
        if rank == 0 and not (self.folder / "fingerprint.json").is_file():
            write_text(self.folder / "fingerprint.json", text + "\n")
        self._own = RowLog(self.folder / f"answers-{rank}.jsonl", key="index")

    def read(self) -> dict[str, str]:
        """All finished answers, of this and of earlier runs and of the other processes, by index."""
        answers: dict[str, str] = {}
        for path in sorted(self.folder.glob("answers-*.jsonl")):
            rows = self._own.rows.values() if path == self._own.path else (row for row, _ in log_lines(path))
            answers |= {row["index"]: row["answer"] for row in rows if row and row.keys() >= {"index", "answer"}}
        return answers

    def cut(self) -> set[str]:
        """Indices of the finished answers that the limit of tokens cut; earlier versions noted none."""
        logs = (log_lines(path) for path in sorted(self.folder.glob("answers-*.jsonl")))
        last = {row["index"]: bool(row.get("cut")) for log in logs for row, _ in log if row and "index" in row}
        return {index for index, was_cut in last.items() if was_cut}

    def append(self, index: str, answer: str, *, cut: bool = False) -> None:
        """Add a finished answer, and whether the limit of tokens cut it."""
        self._own.append([{"index": index, "answer": answer} | ({"cut": True} if cut else {})])


def checkpoint_identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """What tells one checkpoint from another: the files that an answer depends on, small ones by content."""
    folders = [checkpoint.base, *([checkpoint.adapter] if checkpoint.adapter else [])]
    return {
        role: {path.name: _identity(path) for path in sorted({p for m in _MATTER for p in folder.glob(m)})}
        for role, folder in zip(("base", "adapter"), folders, strict=False)
    }


def _identity(path: Path) -> str:
    told = path.stat()
    if told.st_size > _READ_WHOLE:
        return f"{told.st_size} bytes, modified {told.st_mtime_ns}"
    return file_digest(path)[:16]
