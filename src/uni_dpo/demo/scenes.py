"""Pictures that this program draws and knows: coloured shapes in four places, described in several claims."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from uni_dpo.data.questions import Question

if TYPE_CHECKING:
    from PIL import Image

QUESTION = "Describe the picture."
SPLITS: Mapping[str, int] = {"train": 1200, "preference": 600, "validation": 250, "held_out": 350}
"""Pictures per split; no two pictures of all splits show the same."""
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 70, 220),
    "yellow": (235, 205, 30),
}
GREY = (122, 116, 104)
"""What Qwen2-VL's processor turns into zeros."""
SLOPE = 60
"""How much brighter and bluer the ground is at the edges."""
INK = (0, 0, 0)
"""Of outlines, and of the hole in a ring: a shape looks alike in all colours."""
SHAPES = ("disc", "ring", "cross")
CROSS = ((1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (1, 1))
"""Corners, in thirds of its side."""
PLACES = ("top left", "top right", "bottom left", "bottom right")
COUNTS = ("no shape", "one shape", "two shapes", "three shapes", "four shapes")
CORPUS = (
    "You are a helpful assistant. system user assistant",
    "Describe the picture. One shape. Two shapes. Three shapes.",
    "Red disc top left. Green ring top right. Blue cross bottom left. Yellow disc bottom right.",
    "Split: Ask: - Two shapes? - Red disc top left? Yes No",
)
"""What the tiny model's tokenizer learns its words from."""
SPREAD = 0.08
"""Standard deviation of the tiny model's weights: with the usual 0.02 it is slow to begin to tell shapes apart."""
_CLAIM = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) ({'|'.join(PLACES)})\b")
_COUNT = re.compile(rf"\b({'|'.join(COUNTS)})\b")


@dataclass(frozen=True)
class Scene:
    """What a picture shows: place → (colour, shape), in the order of `PLACES`."""

    things: tuple[tuple[str, str, str], ...]
    """(place, colour, shape)."""
    image: Path = Path()

    @property
    def answer(self) -> str:
        """The whole description: how many shapes, then each of them."""
        said = [COUNTS[len(self.things)], *(f"{colour} {shape} {place}" for place, colour, shape in self.things)]
        return " ".join(f"{claim.capitalize()}." for claim in said)


def claims(text: str) -> set[tuple[str, ...]]:
    """Give the claims of a description: how many shapes, and for each place that it speaks of a colour and a shape."""
    text = text.lower()
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

    `seed` decides what is drawn, and which split it is in.
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
        _draw(scene, side, generator.uniform(0, side / 28, size=(len(scene.things), 2)).tolist())
    order = iter(generator.permutation(len(scenes)).tolist())  # scenes with one shape are few, and found early
    return {split: [scenes[index] for index in islice(order, count)] for split, count in SPLITS.items()}


def _ground(side: int) -> "Image.Image":
    """Grey that grows brighter to the right and bluer to the bottom.

    So each patch shows where it lies. By positions alone the tiny model hardly knows: of its 16 rotary frequencies
    those for columns are the slowest, and turn by at most 0.003 from one column to the next.
    """
    import numpy as np
    from PIL import Image

    slope = np.linspace(-SLOPE, SLOPE, side)
    right = slope[None, :, None] * (1, 1, 0)
    down = slope[:, None, None] * (0, 0, 1)
    return Image.fromarray((np.array(GREY) + right + down).astype("uint8"))


def _draw(scene: Scene, side: int, shifts: list[list[float]]) -> None:
    """Each shape lies in its quarter of the picture, moved by a few pixels."""
    from PIL import ImageDraw

    picture = _ground(side)
    pen = ImageDraw.Draw(picture)
    half, size = side / 2, side * 0.36
    for (place, colour, shape), (right, down) in zip(scene.things, shifts, strict=True):
        left = half * ("right" in place) + side * 0.04 + right
        top = half * ("bottom" in place) + side * 0.04 + down
        box, third, paint = (left, top, left + size, top + size), size / 3, COLOURS[colour]
        if shape == "cross":
            pen.polygon([(left + x * third, top + y * third) for x, y in CROSS], fill=paint, outline=INK, width=2)
        else:
            pen.ellipse(box, fill=paint, outline=INK, width=2)
        if shape == "ring":
            pen.ellipse((left + third, top + third, left + 2 * third, top + 2 * third), fill=INK)
    picture.save(scene.image)
