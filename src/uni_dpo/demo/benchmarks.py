"""Digits as benchmarks: one of options to choose from, one of free answers."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from uni_dpo.demo.digits import QUESTION, WORDS, Digit
from uni_dpo.storage.writing import write_text

LETTERS = "ABCD"


def write_mcq(digits: Sequence[Digit], path: str | Path, *, seed: int = 0) -> Path:
    """Write a VLMEvalKit TSV of four options per image, the right one in a drawn place.

    The options are the digits' words, so a model is scored whether it names the letter or the digit.

    Args:
        digits: one row each, in this order.
        path: the file to write.
        seed: of the wrong options and of the places.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    rows = []
    for digit in digits:
        wrong = generator.choice([label for label in range(10) if label != digit.label], size=3, replace=False)
        options = generator.permutation([digit.label, *wrong])
        rows.append(
            {
                "question": QUESTION,
                **{letter: WORDS[label] for letter, label in zip(LETTERS, options, strict=True)},
                "answer": LETTERS[list(options).index(digit.label)],
                **_common(digit),
            }
        )
    return _write(rows, Path(path))


def write_vqa(digits: Sequence[Digit], path: str | Path) -> Path:
    """Write a VLMEvalKit TSV of free answers: the digit's word, its figure, or the sentence that names it."""
    rows = [
        {"question": QUESTION, "answer": repr([WORDS[digit.label], str(digit.label), digit.answer]), **_common(digit)}
        for digit in digits
    ]
    return _write(rows, Path(path))


def _common(digit: Digit) -> dict[str, str]:
    return {"category": WORDS[digit.label], "image_path": str(digit.image.resolve())}


def _write(rows: Sequence[dict[str, str]], path: Path) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["index", *rows[0]], delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"index": index, **row} for index, row in enumerate(rows))
    write_text(path, text.getvalue())
    return path
