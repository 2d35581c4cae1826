"""The faults of a dataset as a whole, which no single row shows."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from uni_dpo.data.dataset_info import DatasetEntry
from uni_dpo.data.faults import Fault


def unseen_columns(entry: DatasetEntry, seen: AbstractSet[str]) -> list[Fault]:
    """Columns that the entry maps and no row has: LlamaFactory stops on them. Needs at least one row."""
    if not seen:
        return []
    names = ["images", "videos", "audios"]
    names += ["system", "tools"] if entry.formatting != "openai" else []
    names += ["query", "history"] if entry.formatting == "alpaca" else []
    wanted = {name: getattr(entry.columns, name) for name in names}
    have = ", ".join(sorted(map(str, seen)))
    return [
        Fault("column_unseen", f"columns.{name}", f"no row has {column!r} (they have {have})",
              "mend the entry's columns in dataset_info.json", file=entry.path)
        for name, column in wanted.items()
        if column is not None and column not in seen
    ]  # fmt: skip


def swapped_scores(name: str, inverted: int, scored: int) -> list[Fault]:
    """The fault of a dataset most of whose pairs are the wrong way round."""
    if inverted * 2 <= scored:
        return []
    found = f"below the rejected score in {inverted:,} of {scored:,} rows of {name!r}"
    return [Fault("scores_swapped", "score_chosen", found, "the two columns are probably swapped")]


def refused_by_llamafactory(path: Path, files: Sequence[Path]) -> str:
    """Why LlamaFactory's own loader would not read a layout that we do; empty where it would."""
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
