"""Log-probabilities of answers on disk, in files that are only ever appended to.

A record holds the digest of a prompt with one answer, a number, and a checksum. Every pass writes a file of its own,
so a pass that was cut off leaves whole records and at most one torn one behind, which its checksum gives away.
"""

import os
import secrets
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

RECORD = np.dtype([("digest", "V32"), ("logp", "<f8"), ("checksum", "<u4")])
SUFFIX = ".answers"


def read_records(folder: Path) -> tuple[dict[bytes, float], int]:
    """Read what all passes wrote to `folder`.

    Returns:
        Digest → log-probability, and how many records were damaged and left out.
    """
    found: dict[bytes, float] = {}
    damaged = 0
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        content = path.read_bytes()
        whole = len(content) // RECORD.itemsize
        damaged += whole * RECORD.itemsize != len(content)
        for record in np.frombuffer(content, RECORD, whole):
            if record["checksum"] == _checksum(record) and np.isfinite(record["logp"]):
                found[record["digest"].tobytes()] = float(record["logp"])
            else:
                damaged += 1
    return found, damaged


@contextmanager
def appending(folder: Path, rank: int) -> Iterator["RecordWriter"]:
    """Open a new file in `folder` for one pass of one rank."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank-{rank:04}-{secrets.token_hex(8)}{SUFFIX}"
    with path.open("xb") as file:
        yield RecordWriter(file)


class RecordWriter:
    """Appends records; each call is on disk when it returns."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, logps: Mapping[bytes, float]) -> None:
        """Append one record per answer, given by its digest."""
        records = np.array([(digest, logp, 0) for digest, logp in logps.items()], RECORD)
        for record in records:
            record["checksum"] = _checksum(record)
        self._file.write(records.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())


def _checksum(record: Any) -> int:
    return zlib.crc32(record.tobytes()[: -RECORD["checksum"].itemsize])
