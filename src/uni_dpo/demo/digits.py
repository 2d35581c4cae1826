"""Scikit-learn's handwritten digits as image files, in splits that never mix, and as small benchmarks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from uni_dpo.data.questions import Question
from uni_dpo.storage.writing import write_text

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTION = "Which digit is written here?"
SPLITS: Mapping[str, int] = {"train": 600, "preference": 600, "validation": 250, "held_out": 347}
"""Images per split: warm-up, preference pairs, choice of settings, and the one look at the end."""


@dataclass(frozen=True)
class Digit:
    """One image file and the digit (0 to 9) that is written in it."""

    image: Path
    label: int

    @property
    def answer(self) -> str:
        """The right answer as the model says it."""
        return answer(self.label)


def answer(label: int) -> str:
    """Return the sentence that names a digit."""
    return f"The digit is {WORDS[label]}."


def write_digits(folder: str | Path, *, side: int, seed: int = 0) -> dict[str, list[Digit]]:
    """Render all 1,797 digits to PNG files of `side` × `side` pixels, shuffled by `seed` into `SPLITS`."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()

    def written(index: int) -> Digit:
        path = folder / f"digit_{index:04d}.png"
        pixels = (digits.images[index] * (255 / 16)).astype("uint8")
        Image.fromarray(pixels).convert("RGB").resize((side, side), Image.Resampling.BICUBIC).save(path)
        return Digit(path, int(digits.target[index]))

    shuffled = map(written, np.random.default_rng(seed).permutation(len(digits.target)))
    return {split: list(islice(shuffled, count)) for split, count in SPLITS.items()}


def closeness(given: str, question: Question) -> float:
    """Tell how close an answer is to the truth, from 0 to 1.

    1 for the right answer; for another digit 0.4 less the further away it lies (at most 0.36); 0 for anything else.
    """
    labels = {answer(label): label for label in range(len(WORDS))}
    if given.strip() not in labels:
        return 0.0
    distance = abs(labels[given.strip()] - labels[str(question.reference)])
    return 1.0 if distance == 0 else 0.4 * (1 - distance / (len(WORDS) - 1))


LETTERS = "ABCD"


def write_mcq(digits: Sequence[Digit], path: str | Path, *, seed: int = 0) -> Path:
    """Write a VLMEvalKit TSV of four options per image, the right one in a drawn place.

    The options are the digits' words, so a model is scored whether it names the letter or the digit. `seed` draws the
    wrong options and the places.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    asked = []
    for digit in digits:
        wrong = generator.choice([label for label in range(10) if label != digit.label], size=3, replace=False)
        options = generator.permutation([digit.label, *wrong]).tolist()
        choices = {letter: WORDS[label] for letter, label in zip(LETTERS, options, strict=True)}
        asked.append(choices | {"answer": LETTERS[options.index(digit.label)]})
    return _write(digits, asked, Path(path))


def write_vqa(digits: Sequence[Digit], path: str | Path) -> Path:
    """Write a VLMEvalKit TSV of free answers: the digit's word, its figure, or the sentence that names it."""
    asked = ({"answer": repr([WORDS[digit.label], str(digit.label), digit.answer])} for digit in digits)
    return _write(digits, asked, Path(path))


def _write(digits: Sequence[Digit], asked: Iterable[dict[str, str]], path: Path) -> Path:
    import pandas as pd

    more = ({"category": WORDS[digit.label], "image_path": str(digit.image.resolve())} for digit in digits)
    rows = [{"question": QUESTION, **question, **rest} for question, rest in zip(asked, more, strict=True)]
    write_text(path, pd.DataFrame(rows).to_csv(sep="\t", index_label="index", lineterminator="\n"))
    return path
