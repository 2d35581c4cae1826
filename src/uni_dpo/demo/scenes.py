"""Pictures that this program draws and knows: coloured shapes in four places, described in several claims."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from uni_dpo.data.questions import Question

QUESTION = "Describe the picture."
SPLITS: Mapping[str, int] = {"train": 1200, "preference": 600, "validation": 250, "held_out": 350}
"""Pictures per split; no two pictures of all splits show the same."""
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 70, 220),
    "yellow": (235, 205, 30),
}
SHAPES = ("circle", "square", "triangle")
PLACES = ("top left", "top right", "bottom left", "bottom right")
COUNTS = ("no shape", "one shape", "two shapes", "three shapes", "four shapes")
CORPUS = (
    "You are a helpful assistant. system user assistant",
    "Describe the picture. There is one shape. There are two shapes. There are three shapes.",
    "A red circle is at the top left. A green square is at the top right. A blue triangle is at the bottom left.",
    "A yellow circle is at the bottom right.",
)
"""What the tiny model's tokenizer learns its words from."""
_CLAIM = re.compile(rf"A ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) is at the ({'|'.join(PLACES)})")
_COUNT = re.compile(rf"There (?:is|are) ({'|'.join(COUNTS)})")


@dataclass(frozen=True)
class Scene:
    """What a picture shows: place → (colour, shape), in the order of `PLACES`."""

    things: tuple[tuple[str, str, str], ...]
    """(place, colour, shape)."""
    image: Path = Path()

    @property
    def answer(self) -> str:
        """The whole description: how many shapes, then each of them."""
        verb = "is" if len(self.things) == 1 else "are"
        said = [f"A {colour} {shape} is at the {place}." for place, colour, shape in self.things]
        return " ".join([f"There {verb} {COUNTS[len(self.things)]}.", *said])


def claims(text: str) -> set[tuple[str, ...]]:
    """Give the claims of a description: how many shapes, and for each place that it speaks of a colour and a shape."""
    found: set[tuple[str, ...]] = {(count,) for count in _COUNT.findall(text)}
    for colour, shape, place in _CLAIM.findall(text):
        found |= {(place, colour), (place, shape)}
    return found


def right_claims(answer: str, question: Question) -> float:
    """Tell how well a description fits the picture, from 0 to 1: F1 of its claims against those of the whole truth."""
    said, true = claims(answer), claims(str(question.reference))
    return 2 * len(said & true) / (len(said) + len(true)) if said else 0.0


def write_scenes(folder: str | Path, *, side: int, seed: int = 0) -> dict[str, list[Scene]]:
    """Draw the pictures of all splits, one to three shapes each, to PNG files of `side` × `side` pixels.

    Args:
        folder: created if missing.
        side: pixels per side.
        seed: of what is drawn, and which split it is in.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown: dict[tuple[tuple[str, str, str], ...], None] = {}
    while len(shown) < sum(SPLITS.values()):
        places = sorted(generator.choice(len(PLACES), size=generator.integers(1, 4), replace=False).tolist())
        colours = generator.choice(list(COLOURS), size=len(places)).tolist()
        shapes = generator.choice(SHAPES, size=len(places)).tolist()
        shown[tuple((PLACES[p], c, s) for p, c, s in zip(places, colours, shapes, strict=True))] = None
    scenes = [Scene(things, folder / f"scene_{number:04d}.png") for number, things in enumerate(shown)]
    for scene in scenes:
        _draw(scene, side, generator.uniform(0, side / 14, size=(len(scene.things), 2)).tolist())
    order = generator.permutation(len(scenes)).tolist()  # scenes with one shape are few, and found early
    splits, start = {}, 0
    for split, count in SPLITS.items():
        splits[split] = [scenes[index] for index in order[start : start + count]]
        start += count
    return splits


def _draw(scene: Scene, side: int, shifts: list[list[float]]) -> None:
    """Each shape lies in its quarter of the picture, moved by a few pixels."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (side, side), (245, 245, 245))
    pen = ImageDraw.Draw(picture)
    half, size = side / 2, side * 0.32
    for (place, colour, shape), (right, down) in zip(scene.things, shifts, strict=True):
        left = half * ("right" in place) + side * 0.06 + right
        top = half * ("bottom" in place) + side * 0.06 + down
        box = (left, top, left + size, top + size)
        if shape == "circle":
            pen.ellipse(box, fill=COLOURS[colour])
        elif shape == "square":
            pen.rectangle(box, fill=COLOURS[colour])
        else:
            pen.polygon([(left, top + size), (left + size, top + size), (left + size / 2, top)], fill=COLOURS[colour])
    picture.save(scene.image)
