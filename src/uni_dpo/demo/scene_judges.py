"""What judges of drawn pictures learn from: true and false claims, and descriptions of which one is better."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from uni_dpo.data.questions import Question
from uni_dpo.demo.scenes import COLOURS, CORPUS, COUNTS, PLACES, QUESTION, SHAPES, Scene, right_claims

Rows = list[dict[str, Any]]
NOTHING = "no"
"""First word of what is said of an empty place."""
KINDS = {"Colour": tuple(COLOURS), "Shape": SHAPES}
COUNTED = tuple(count.split()[0] for count in COUNTS[1:4])
"""How many shapes a picture may have, in words."""
HOW_MANY = "Shapes?"
ASKED = 6
"""Questions per picture about a place, of eight."""
JUDGE_CORPUS = (
    *CORPUS,
    HOW_MANY,
    *(f"{word.capitalize()} top left?" for word in (*COLOURS, *SHAPES, *KINDS)),
    *(f"{word.capitalize()} shapes." for word in (*COUNTED, NOTHING)),
)
"""What the judge's tokenizer learns its words from: each begins a question or a reply as one token."""


def mistaken(scene: Scene, draw: random.Random) -> Scene:
    """Return the scene with one mistake: another colour, shape or place, or a shape too few or too many."""
    things = list(scene.things)
    free = [place for place in PLACES if place not in {taken for taken, *_ in things}]
    at = draw.randrange(len(things))
    place, colour, shape = things[at]
    mistake = draw.choice(["colour", "shape", "shape", "place", "count"])
    if mistake == "colour":
        things[at] = (place, draw.choice([other for other in COLOURS if other != colour]), shape)
    elif mistake == "shape":
        things[at] = (place, colour, draw.choice([other for other in SHAPES if other != shape]))
    elif mistake == "place" and free:
        things[at] = (draw.choice(free), colour, shape)
    elif len(things) > 1 and (not free or draw.random() < 0.5):
        things.pop(at)
    else:
        things.append((draw.choice(free), draw.choice(list(COLOURS)), draw.choice(SHAPES)))
    return replace(scene, things=tuple(sorted(things, key=lambda thing: PLACES.index(thing[0]))))


def judge_rows(scenes: Sequence[Scene], *, seed: int = 0) -> Rows:
    """Let a model learn to see: descriptions, how many shapes there are, and the colour or the shape in a place."""
    draw, rows = random.Random(seed), []
    for scene in scenes:
        there = {place: {"Colour": colour, "Shape": shape} for place, colour, shape in scene.things}
        asked = [(f"{kind} {place}?", there.get(place, {}).get(kind, NOTHING)) for place in PLACES for kind in KINDS]
        asked = [(HOW_MANY, COUNTED[len(there) - 1]), *draw.sample(asked, ASKED)]
        replies = [(QUESTION, scene.answer), *((question, f"{word.capitalize()}.") for question, word in asked)]
        rows += [_row(scene, question, output=reply) for question, reply in replies]
    return rows


def parts(description: str) -> list[str]:
    """Give the claims of a description, each of which says one thing: those that `right_claims` counts."""
    claims = []
    for words in (sentence.lower().split() for sentence in description.split(".")):
        if len(words) == 4 and words[0] in COLOURS and words[1] in SHAPES:
            claims += [f"{words[0]} {words[2]} {words[3]}.", f"{words[1]} {words[2]} {words[3]}."]
        elif words:
            claims.append(f"{' '.join(words)}.")
    return [claim.capitalize() for claim in claims]


def _row(scene: Scene, question: str, **answers: str) -> dict[str, Any]:
    return {"instruction": f"<image>{question}", **answers, "images": [str(scene.image)]}


def ranked_rows(scenes: Sequence[Scene], *, seed: int = 0) -> Rows:
    """Let a reward model learn which of two descriptions has fewer mistakes: none or one against more."""
    draw, rows = random.Random(seed), []
    for scene in scenes:
        better = scene if draw.random() < 0.5 else mistaken(scene, draw)
        worse = mistaken(better, draw)
        truth = Question(scene.image.stem, QUESTION, reference=scene.answer)
        pair = sorted((better.answer, worse.answer), key=lambda said: -right_claims(said, truth))
        scores = [right_claims(said, truth) for said in pair]
        if scores[0] > scores[1]:
            rows.append(_row(scene, QUESTION, chosen=pair[0], rejected=pair[1]))
    return rows
