"""Reading a ledger, the files of all processes as one table, and putting together what verdicts rest on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.columns import LEDGER, TEXTS, ledger_folder, record_file, texts_file
from uni_dpo.ledger.summary import count_groups, pair_history, windows
from uni_dpo.storage import read_json


def read_ledger(output: str | Path) -> pa.Table:
    """Return every row of the ledger in a training's output folder, by step; no rows where none was kept.

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


def log_series(log: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Return the steps and values of every metric of a log that is a number."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in log:
        for metric, value in line.items():
            if metric != "step" and "step" in line and isinstance(value, int | float):
                steps, values = found.setdefault(metric, ([], []))
                steps.append(int(line["step"]))
                values.append(float(value))
    return found


def _table(file: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pq.read_table(file, schema=schema)
    except (pa.ArrowException, OSError) as error:
        raise UniDPOError(
            f"{file}: cannot be read ({str(error).splitlines()[0]}); delete it to do without its rows"
        ) from error


@dataclass(frozen=True)
class Evidence:
    """What verdicts rest on; JSON-like, so that runs can be recorded.

    Attributes:
        settings: `pref_loss`, `beta`, `eta`, `tau_ref`, `gamma`, `nll_lambda`, `tau_good`, `learning_rate`,
            `averaged` (whether log-probabilities are means over tokens); what a loss does not have is missing.
        log: the training's log lines, as in `trainer_state.json`.
        windows: see `summary.windows`.
        groups: how many pairs are in each of `summary.GROUPS`.
    """

    settings: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    windows: Sequence[Mapping[str, Any]]
    groups: Mapping[str, int] = field(default_factory=dict)

    def setting(self, name: str, default: float = 0.0) -> float:
        """Return a setting that is a number; `default` where it is missing or 0."""
        return float(self.settings.get(name) or default)

    def series(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Return steps and values of a metric of the log."""
        lines = [line for line in self.log if metric in line and "step" in line]
        return np.array([line["step"] for line in lines]), np.array([line[metric] for line in lines], dtype=float)

    def window_means(self, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """Return steps and means of a quantity over the windows that have it."""
        found = [window for window in self.windows if quantity in window]
        return np.array([one["step"] for one in found]), np.array([one[quantity]["mean"] for one in found], dtype=float)

    def spreads(self, quantity: str) -> list[list[float]]:
        """Return the quantiles of a quantity in each window that has it."""
        return [window[quantity]["q"] for window in self.windows if quantity in window]

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.setting("learning_rate")

    @property
    def accuracies(self) -> np.ndarray:
        """Of each window the share of pairs whose reward margin is above 0."""
        return np.array([window["accuracy"] for window in self.windows])

    @property
    def steps(self) -> int:
        """The last step that something is known of."""
        return max((int(line["step"]) for line in (*self.log, *self.windows) if "step" in line), default=0)

    @property
    def uses_uni_dpo(self) -> bool:
        """Whether Uni-DPO is among the run's losses."""
        return "uni_dpo" in str(self.settings.get("pref_loss"))


def evidence_of(output: str | Path, count: int = 48) -> Evidence:
    """Return the evidence of a training, from its output folder; `count` as of `summary.windows`.

    Raises:
        UniDPOError: the folder holds no training with a ledger.
    """
    return evidence_of_rows(read_record(output).get("evidence", {}), read_log(output), read_ledger(output), count)


def evidence_of_rows(
    settings: Mapping[str, Any], log: Sequence[Mapping[str, Any]], rows: pa.Table, count: int = 48
) -> Evidence:
    """Return the evidence of a run from its ledger's rows, by step; the rest as of `Evidence` and `evidence_of`."""
    return Evidence(settings, log, windows(rows, count=count), count_groups(pair_history(rows)))
