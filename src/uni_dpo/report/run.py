"""The page of a training: verdicts, what was trained on what, curves, weights, pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.reading import Evidence, log_series, read_ledger, read_log, read_record, read_texts
from uni_dpo.ledger.summary import GROUPS, SUSPECT_LABEL, PairHistory, count_groups, group_pairs, pair_history, windows
from uni_dpo.ledger.verdicts import GROUP_RULES, METRICS, judge
from uni_dpo.report.page import Thumbnails, cut, write_page

PAGE = "report.html"
SHOWN = 2_000
"""Characters of a text that a page shows; `SHOWN_OF_MANY` where there are more than `MANY` pairs."""
MANY, SHOWN_OF_MANY = 5_000, 400


def write_run_page(
    outputs: Sequence[str | Path],
    file: str | Path | None = None,
    *,
    images: int = 3_000,
    log: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Write the page of one training, or of several side by side; the pairs are those of the first.

    Args:
        outputs: the trainings' output folders.
        file: the page; by default `report.html` in the first folder.
        images: how many different images at most.
        log: the log lines of a training that goes on; by default those that each folder holds.

    Raises:
        UniDPOError: a folder holds no training with a ledger.
    """
    folders = [Path(output) for output in outputs]
    if not folders:
        raise UniDPOError("report: name the output_dir of a training")
    runs, pairs, thumbnails = [], None, Thumbnails(images)
    for folder in folders:
        rows = read_ledger(folder)
        history = pair_history(rows, _split(rows))
        runs.append(_run(folder, rows, history, read_log(folder) if log is None else log))
        if pairs is None:
            pairs = _pair_columns(history, read_texts(folder), thumbnails)
    data = {"runs": runs, "pairs": pairs, "images": thumbnails.images, "groups": list(GROUPS), "rules": GROUP_RULES}
    return write_page(file or folders[0] / PAGE, ", ".join(folder.absolute().name for folder in folders), data)


def _split(rows: pa.Table) -> str:
    """The split that the pairs of a page are from: what was trained on, or else what was evaluated."""
    splits = rows["split"].cast(pa.string()).unique().to_pylist()
    return "train" if "train" in splits or not splits else str(splits[0])


def _run(folder: Path, rows: pa.Table, history: PairHistory, log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    record = read_record(folder)
    evidence = Evidence(record.get("evidence", {}), log, windows(rows, _split(rows)), count_groups(history))
    return {
        "name": folder.absolute().name,
        "record": record,
        "log": log_series(log),
        "windows": evidence.windows,
        "verdicts": [
            {"state": verdict.state, "metric": METRICS[verdict.metric]}
            | {language: verdict.sentence(language) for language in ("en", "zh")}
            for verdict in judge(evidence)
        ],
        "groups": evidence.groups,
    }


def _pair_columns(history: PairHistory, texts: pa.Table, thumbnails: Thumbnails) -> dict[str, list[Any]]:
    """The pairs, column by column: names, texts, numbers at the first and last visit, margins, groups, images.

    The images of suspect pairs come first, for a page that has no room for all.
    """
    places = {name: place for place, name in enumerate(texts["pair"].to_pylist())}
    found = [places.get(name) for name in history.pairs]
    shown = SHOWN if len(found) <= MANY else SHOWN_OF_MANY
    columns: dict[str, list[Any]] = {"pair": history.pairs, "visits": history.visits.tolist()}
    for name in ("question", "chosen", "rejected"):
        values = texts[name].to_pylist()
        columns[name] = ["" if place is None else cut(values[place] or "", shown) for place in found]
    columns |= _numbers(history)
    groups = group_pairs(history)
    columns["groups"] = sum(
        (members.astype(int) << bit for bit, members in enumerate(groups.values())), np.zeros(len(found), int)
    ).tolist()
    paths = texts["images"].to_pylist()
    columns["paths"] = [", ".join(paths[place] or ()) if place is not None else "" for place in found]
    columns["images"] = [[] for _ in found]
    for at in np.argsort(~groups[SUSPECT_LABEL], kind="stable").tolist():
        if (place := found[at]) is not None:
            columns["images"][at] = thumbnails.places(paths[place] or ())
    return columns


def _numbers(history: PairHistory) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    wanted = ("w_qual", "w_perf", "reward_margin", "policy_margin", "chosen_drift")
    for when, values in (("first", history.first), ("last", history.last)):
        columns |= {f"{when}_{name}": _list(values[name]) for name in wanted if np.isfinite(values[name]).any()}
    for name in ("score_margin", "score_chosen", "length_gap"):
        if np.isfinite(history.last[name]).any():
            columns[name] = _list(history.last[name])
    if "score_margin" in columns:
        columns["score_rejected"] = _list(history.last["score_chosen"] - history.last["score_margin"])
    margins = np.round(history.reward_margins, 4)
    columns["reward_margins"] = [row[np.isfinite(row)].tolist() for row in margins]
    return columns


def _list(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
