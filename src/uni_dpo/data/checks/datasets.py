"""The faults of a dataset as a whole, which no single row shows."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from uni_dpo.data.checks.audit import Audit
from uni_dpo.data.dataset_info import DatasetEntry
from uni_dpo.data.faults import Fault, shown
from uni_dpo.data.videos import DECODER, has_decoder


def whole_faults(entry: DatasetEntry, seen: AbstractSet[str], audit: Audit) -> Iterator[Fault]:
    """Yield what is wrong with an entry, by the columns that its rows have, and with the scores as a whole."""
    if "rejected_images" in seen and entry.columns.rejected_images is None:
        found = "rows have it, the entry does not"
        advice = 'add "rejected_images": "rejected_images" to the columns in dataset_info.json, or rename the column'
        if entry.ranked:
            found, advice = "all ranked answers see the same images", "make pairs of the rows, or remove the column"
        yield Fault("column_unmapped", "columns.rejected_images", found, advice, file=entry.path)
    names = ["images", "videos", "audios"]
    names += ["system", "tools"] if entry.formatting != "openai" else []
    names += ["query", "history"] if entry.formatting == "alpaca" else []
    have = ", ".join(sorted(map(str, seen)))
    for name in names if seen else ():  # LlamaFactory stops on a column that no row has
        column = getattr(entry.columns, name)
        if column is not None and column not in seen:
            found = f"no row has {column!r} (they have {have})"
            advice = "correct the entry's columns in dataset_info.json"
            yield Fault("column_unseen", f"columns.{name}", found, advice, file=entry.path)
    if entry.columns.videos in seen and not has_decoder():
        found = f"the package {DECODER}, which opens videos, is not installed"
        yield Fault("video_decoder", "columns.videos", found, f"pip install {DECODER}", file=entry.path)
    if audit.inverted.count * 2 > audit.margins.count:
        found = (
            f"below the rejected score in {audit.inverted.count:,} of {audit.margins.count:,} rows of {entry.name!r}"
        )
        advice = (
            "either the two columns are swapped, or who gave the scores disagrees with the choice (a reward model "
            "below chance, another judge): read some rows, then swap them, rate again, or choose by the scores"
        )
        yield Fault("scores_swapped", "score_chosen", found, advice)
    if not entry.ranking:
        found = f"dataset {entry.name!r} is not marked as pairs"
        yield Fault("not_ranking", "", found, 'add "ranking": true to its entry')


def scale_warnings(audit: Audit) -> list[str]:
    """Return what the scores as a whole make of the weights: several scales in one file, weights that are all alike."""
    found = []
    tops = {name: max(abs(low), abs(high)) for name, (low, high, count) in audit.judges.items() if count >= 10}
    if tops and max(tops.values()) >= 1.9 * min(tops.values()):
        extremes = min(tops, key=lambda name: tops[name]), max(tops, key=lambda name: tops[name])
        ranges = (f"{shown(name)} between {audit.judges[name][0]:g} and {audit.judges[name][1]:g}" for name in extremes)
        found.append(
            f"two scales in one file: {audit.judge_column} {' and '.join(ranges)}; "
            f"bring them onto one with `uni-dpo data calibrate --by {audit.judge_column}`"
        )
    elif audit.two_scales[0]:
        share, top = audit.two_scales
        found.append(
            f"two scales in one file: {share:.0%} of the pairs have scores up to {top:g}, the others far above; "
            "add a column that names the rater, and run `uni-dpo data calibrate --by` it"
        )
    if audit.margins.count >= 10:
        low, high = audit.quality_weights.quantiles[1], audit.quality_weights.quantiles[-2]
        middle = abs(audit.margins.quantiles[3]) or 1.0
        small = high < 0.51 and audit.margins.quantiles[-2] > 0
        if low > 0.99 or small:
            weight, margins = ("0.5", "small") if small else ("1", "large")
            found.append(
                f"w_qual is {weight} for nearly all pairs at qual_eta = {audit.qual_eta:g}: the margins are {margins}; "
                f"set uni_dpo_qual_eta to about {2 / middle:.2g}, or run `uni-dpo data calibrate`"
            )
    return found


def refused_by_llamafactory(path: Path, files: Sequence[Path]) -> str:
    """Tell why LlamaFactory's own loader, which serves its own losses, would not read a layout; else nothing."""
    if path.is_dir() and {f.name for f in path.iterdir()} != {f.name for f in files}:
        return (
            f"{path}: LlamaFactory wants a folder of data files of one type and nothing else; "
            "name one file, or bring the rows into one with `uni-dpo data merge`"
        )
    for file in files:
        with file.open("rb") as start:
            if file.suffix == ".json" and start.read(4) == b"\xef\xbb\xbf[":
                return (
                    f"{file}: starts with a byte-order mark, which LlamaFactory's reader refuses; save it without one"
                )
    return ""
