"""The columns of a ledger, and where it stands in a training's output folder."""

from pathlib import Path

import pyarrow as pa

LEDGER = pa.schema(
    [
        ("step", pa.int32()),
        ("epoch", pa.int32()),
        ("split", pa.dictionary(pa.int32(), pa.string())),
        ("pair", pa.dictionary(pa.int32(), pa.string())),
        ("policy_chosen", pa.float32()),
        ("policy_rejected", pa.float32()),
        ("reference_chosen", pa.float32()),
        ("reference_rejected", pa.float32()),
        ("policy_margin", pa.float32()),
        ("reference_margin", pa.float32()),
        ("score_chosen", pa.float32()),
        ("score_rejected", pa.float32()),
        ("w_qual", pa.float32()),
        ("w_perf", pa.float32()),
        ("nll_active", pa.bool_()),
        ("loss", pa.float32()),
        ("tokens_chosen", pa.int32()),
        ("tokens_rejected", pa.int32()),
    ]
)
"""`step` is the optimizer step that a row counts for, from 1; for an evaluation the steps taken before it.
`epoch` counts passes from 1. `split` is `train`, `eval` or `eval_NAME`. Log-probabilities are in nats as the loss takes
them, summed or averaged over the answer's tokens. `policy_margin` is Δ_π and `reference_margin` Δ_ref.
"""

NUMBERS = tuple(name for name in LEDGER.names[4:] if not name.endswith("_margin"))
"""What a trainer records of each pair; a number that a loss does not have stays out."""

TEXTS = pa.schema(
    [
        ("pair", pa.string()),
        ("key", pa.int64()),
        ("question", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("images", pa.list_(pa.string())),
        ("score_chosen", pa.float32()),
        ("score_rejected", pa.float32()),
    ]
)
"""What the names in a ledger's column `pair` stand for."""


def own_folder(output: str | Path) -> Path:
    """Tell where this project keeps what it records of a training, in the training's output folder."""
    return Path(output) / "uni_dpo"


def ledger_folder(output: str | Path) -> Path:
    """Return the folder of Parquet files that is read as one table: pandas, Polars, DuckDB and `datasets` all do."""
    return own_folder(output) / "pairs.parquet"


def record_file(output: str | Path) -> Path:
    """Return the JSON file that says what was trained on what."""
    return own_folder(output) / "run.json"


def texts_file(output: str | Path) -> Path:
    """Return the Parquet file with the texts of the pairs, columns `TEXTS`."""
    return own_folder(output) / "texts.parquet"
