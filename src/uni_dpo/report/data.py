"""Pages of pairs that no training has seen yet: of a data file, and of an engine's work dir."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uni_dpo.data.dataset_info import pair_entry
from uni_dpo.data.image_state import BrokenImageError
from uni_dpo.data.images import ImagePaths, image_paths, image_source
from uni_dpo.data.pair import read_pair
from uni_dpo.data.tables.reading import iter_rows, numbered_rows
from uni_dpo.errors import UniDPOError
from uni_dpo.report.page import Thumbnails, pair_columns, write_page
from uni_dpo.report.run import MANY, SHOWN, SHOWN_OF_MANY
from uni_dpo.storage.rowlog import log_lines

LONG_GAP = "suspect length"
GROUPS = ("paired", "put aside", LONG_GAP)
RULES = {
    "paired": {"en": "the pair is in the data", "zh": "偏好对在数据中"},
    "put aside": {
        "en": "the engine sampled these answers and made no pair of them",
        "zh": "引擎采样了这些回答，但没有成对",
    },
    LONG_GAP: {
        "en": "one answer has more than twice the characters of the other",
        "zh": "一个回答的字符数超过另一个的两倍",
    },
}

Shown = dict[str, Any]
"""A pair on a page: `pair`, `question`, `chosen`, `rejected`, `score_chosen`, `score_rejected`, `images`, `note`."""


def _groups(row: Shown) -> int:
    lengths = sorted((len(row["chosen"]), len(row["rejected"])))
    aside = "aside" in row
    return (not aside) | aside << 1 | (not aside and lengths[1] > 2 * lengths[0]) << 2


def write_data_page(source: str | Path, file: str | Path | None = None, *, images: int = 3_000) -> Path:
    """Write the page of a file of pairs, or of an engine's work dir: what it paired, and what it put aside.

    Args:
        source: the file, or the work dir.
        file: the page; by default `report.html` in the work dir, or `NAME.html` beside the file.
        images: how many different images at most.

    Raises:
        UniDPOError: there are no pairs in it.
    """
    source = Path(source)
    if not source.is_dir():
        rows, title, page = list(_file_pairs(source)), source.name, source.with_suffix(".html")
    elif (data := source / "dataset" / "pairs.json").is_file():
        paired = {str(row.get("question_id")) for row in iter_rows(data)}
        rows, title = [*_file_pairs(data), *_put_aside(source, paired)], source.absolute().name
        page = source / "report.html"
    else:
        raise UniDPOError(
            f"{source}: holds no training and no dataset of the engine; name one of them, or a file of pairs"
        )
    thumbnails = Thumbnails(images)
    columns = pair_columns(
        [row | {"groups": _groups(row)} for row in rows], thumbnails, SHOWN if len(rows) <= MANY else SHOWN_OF_MANY
    )
    scores = [(row["score_chosen"], row["score_rejected"]) for row in rows]
    columns["score_margin"] = [None if None in both else both[0] - both[1] for both in scores]
    columns["length_gap"] = [len(row["chosen"]) - len(row["rejected"]) for row in rows]
    content = {"pairs": columns, "images": thumbnails.images, "groups": list(GROUPS), "rules": RULES}
    return write_page(file or page, title, content)


def _file_pairs(source: Path) -> Iterator[Shown]:
    """The pairs of a data file, named as a ledger names them; rows that are no pairs are left out."""
    entry = pair_entry(source)
    paths = image_paths(source.parent, None, entry.beside)
    count = 0
    for number, _, row in numbered_rows(source):
        pair = read_pair(row, entry, [], scores_required=False) if isinstance(row, dict) else None
        if pair is not None:
            count += 1
            yield {
                "pair": f"{source.name}, row {number}",
                "question": pair.instruction,
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "score_chosen": pair.score_chosen,
                "score_rejected": pair.score_rejected,
                "images": [place for image in pair.images if (place := _file_of(image, paths))],
            }
    if not count:
        raise UniDPOError(f"{source}: no row of it is a pair; `uni-dpo data check {source}` says why")


def _file_of(image: Any, paths: ImagePaths) -> str | None:
    try:
        found = image_source(image, paths)
    except BrokenImageError:
        return None
    return None if isinstance(found, bytes) else str(found)


def _put_aside(work: Path, paired: set[str]) -> Iterator[Shown]:
    """The questions of the last stage with scores of which no pair was made: their best and worst answers."""
    stages = sorted(work.glob("[0-9]-*.jsonl"))
    for row, _ in log_lines(stages[-1]) if stages else ():
        answers = (row or {}).get("answers")
        if row is None or str(row.get("id")) in paired or not isinstance(answers, list):
            continue
        rated = [one for one in answers if isinstance(one, dict) and isinstance(one.get("score"), int | float)]
        if rated:
            best, worst = (pick(rated, key=lambda one: one["score"]) for pick in (max, min))
            yield {
                "pair": str(row["id"]),
                "question": str(row["id"]),
                "chosen": str(best.get("text", "")),
                "rejected": str(worst.get("text", "")),
                "score_chosen": best["score"],
                "score_rejected": worst["score"],
                "images": [],
                "note": f"{len(answers)} answers, {len({one['score'] for one in rated})} different scores",
                "aside": True,
            }
