"""Reading a ledger: the files of all processes as one table."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.columns import LEDGER, TEXTS, ledger_folder, texts_file


def read_ledger(output: str | Path) -> pa.Table:
    """Every row of a training's ledger, by step; no rows where none was kept.

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
    """The texts of the pairs of a training, columns `TEXTS`; no rows where none were kept.

    Raises:
        UniDPOError: the file cannot be read.
    """
    file = texts_file(output)
    return _table(file, TEXTS) if file.is_file() else TEXTS.empty_table()


def _table(file: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pq.read_table(file, schema=schema)
    except (pa.ArrowException, OSError) as error:
        raise UniDPOError(
            f"{file}: cannot be read ({str(error).splitlines()[0]}); delete it to do without its rows"
        ) from error
