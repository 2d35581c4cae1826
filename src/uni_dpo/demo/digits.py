"""Scikit-learn's handwritten digits as image files, in splits that never mix."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
    """The sentence that names a digit."""
    return f"The digit is {WORDS[label]}."


def write_digits(folder: str | Path, *, side: int, seed: int = 0) -> dict[str, list[Digit]]:
    """Render all 1,797 digits to PNG files of `side` × `side` pixels, shuffled by `seed` into `SPLITS`."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    splits: dict[str, list[Digit]] = {}
    start = 0
    for split, count in SPLITS.items():
        splits[split] = []
        for index in order[start : start + count]:
            path = folder / f"digit_{index:04d}.png"
            pixels = (digits.images[index] * (255 / 16)).astype("uint8")
            Image.fromarray(pixels).convert("RGB").resize((side, side), Image.Resampling.BICUBIC).save(path)
            splits[split].append(Digit(path, int(digits.target[index])))
        start += count
    return splits
