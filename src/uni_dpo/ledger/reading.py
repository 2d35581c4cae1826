"""Reading a ledger, the files of all processes as one table, and putting together what verdicts rest on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.columns import LEDGER, TEXTS, ledger_folder, record_file, texts_file
from uni_dpo.ledger.summary import group_pairs, pair_history, windows
from uni_dpo.ledger.verdicts import Evidence
from uni_dpo.storage.reading import read_json


def read_ledger(output: str | Path) -> pa.Table:
    """Return every row of a training's ledger, by step; no rows where none was kept.

    Args:
        output: the training's output folder.

    Raises:
        UniDPOError: a file of it cannot be read.
    """
    parts = [_table(part, LEDGER) for part in sorted(ledger_folder(output).glob("*.parquet"))]
    if not parts:
        return LEDGER.empty_table()
    return pa.concat_tables(parts).unify_dictionaries().sort_by([("step", "ascending")]).combine_chunks()


def read_texts(output: str | Path) -> pa.Table:
    """Return the texts of the pairs of a training, columns `TEXTS`; no rows where none were kept.

    Raises:
        UniDPOError: the file cannot be read.
    """
    file = texts_file(output)
    return _table(file, TEXTS) if file.is_file() else TEXTS.empty_table()


def read_record(output: str | Path) -> dict[str, Any]:
    """Return what was trained on what, as `uni_dpo/run.json` has it.

    Raises:
        UniDPOError: there is none, or it cannot be read.
    """
    file = record_file(output)
    if not file.is_file():
        raise UniDPOError(
            f"{output}: no training with a ledger has written here ({file} is missing); name the output_dir of one, "
            "trained without uni_dpo_ledger: false"
        )
    return read_json(file)


def read_log(output: str | Path) -> list[dict[str, Any]]:
    """Return the log lines of a training: of its end, or else of its last checkpoint; none where there is neither."""
    states = [Path(output) / "trainer_state.json", *Path(output).glob("checkpoint-*/trainer_state.json")]
    found = [read_json(state) for state in states if state.is_file()]
    return list(max(found, key=lambda state: int(state.get("global_step", 0))).get("log_history", [])) if found else []


def _table(file: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pq.read_table(file, schema=schema)
    except (pa.ArrowException, OSError) as error:
        raise UniDPOError(
            f"{file}: cannot be read ({str(error).splitlines()[0]}); delete it to do without its rows"
        ) from error


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
