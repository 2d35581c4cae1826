"""Putting together what verdicts rest on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from uni_dpo.ledger.groups import group_pairs, pair_history
from uni_dpo.ledger.reading import read_ledger, read_log, read_record
from uni_dpo.ledger.summary import windows
from uni_dpo.ledger.verdicts import Evidence


def evidence_of(output: str | Path, count: int = 48) -> Evidence:
    """Return the evidence of a training, from its output folder.

    Args:
        output: the folder.
        count: see `summary.windows`.

    Raises:
        UniDPOError: the folder holds no training with a ledger.
    """
    return evidence_of_rows(read_record(output).get("evidence", {}), read_log(output), read_ledger(output), count)


def evidence_of_rows(
    settings: Mapping[str, Any], log: Sequence[Mapping[str, Any]], rows: pa.Table, count: int = 48
) -> Evidence:
    """Return the evidence of a run.

    Args:
        settings: see `Evidence`.
        log: the log lines.
        rows: its ledger, by step.
        count: see `summary.windows`.
    """
    groups = group_pairs(pair_history(rows))
    return Evidence(
        settings, log, windows(rows, count=count), {name: int(members.sum()) for name, members in groups.items()}
    )
