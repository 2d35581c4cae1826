"""The finished pairs on disk: JSON in LlamaFactory's form, Parquet beside it, registered and checked."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uni_dpo.data.checks.preflight import preflight
from uni_dpo.data.dataset_info import register_entry
from uni_dpo.data.questions import Question
from uni_dpo.engine.asking import Template
from uni_dpo.engine.records import Pair
from uni_dpo.storage.writing import replacing, write_text

COLUMNS = {
    "prompt": "instruction",
    "chosen": "chosen",
    "rejected": "rejected",
    "images": "images",
    "score_chosen": "score_chosen",
    "score_rejected": "score_rejected",
}


def write_dataset(
    folder: Path, name: str, questions: Mapping[str, Question], pairs: Sequence[Pair], instruction: Template
) -> tuple[Path, list[str]]:
    """Write `pairs.json`, `pairs.parquet` and the entry `name` in `dataset_info.json`, and check the result.

    Args:
        folder: of the data set; images inside it are named relative to it.
        questions: by id.
        instruction: the prompt under which the pairs are trained on, with the gap {question}.

    Returns:
        The path of `pairs.json` and the preflight's warnings.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = _rows(folder, questions, pairs, instruction)
    path = folder / "pairs.json"
    write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    with replacing(path.with_suffix(".parquet")) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    with_images = any(row["images"] for row in rows)
    columns = {key: value for key, value in COLUMNS.items() if with_images or key != "images"}
    register_entry(name, {"file_name": path.name, "ranking": True, "columns": columns}, folder)
    return path, preflight([name], folder).warnings


def _rows(
    folder: Path, questions: Mapping[str, Question], pairs: Sequence[Pair], instruction: Template
) -> list[dict[str, Any]]:
    rows = []
    numbers: dict[str, int] = {}
    for pair in pairs:
        question = questions[pair.question_id]
        number = numbers[pair.question_id] = numbers.get(pair.question_id, -1) + 1
        rows.append(
            {
                "id": f"{question.id}-{number}",
                "instruction": "<image>" * len(question.images) + instruction.render(question=question.text),
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "images": [_relative(image, folder) for image in question.images],
                "score_chosen": pair.score_chosen,
                "score_rejected": pair.score_rejected,
                "question_id": question.id,
            }
        )
    return rows


def _relative(image: str, folder: Path) -> str:
    path = Path(image)
    root = folder.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
