"""What judges of drawn pictures learn from: true and false claims, and descriptions of which one is better."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from uni_dpo.data.questions import Question
from uni_dpo.demo.scenes import COLOURS, PLACES, QUESTION, SHAPES, Scene, right_claims

Rows = list[dict[str, Any]]
CHECKS = 2
"""True claims per picture, and as many false ones."""


def sentences(description: str) -> list[str]:
    """Give the claims of a description as it says them."""
    return [f"{part.strip()}." for part in description.split(".") if part.strip()]


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
    """Let one model learn to split a description into claims, to turn a claim into a question, and to answer it.

    The prompts are those of `examples/engine/prompts_tiny`.
    """
    draw, rows = random.Random(seed), []
    for scene in scenes:
        true = sentences(scene.answer)
        for _ in range(CHECKS):
            wrong = mistaken(scene, draw)
            false = [claim for claim in sentences(wrong.answer) if claim not in true]
            for claim, says in ((draw.choice(true), "Yes"), (draw.choice(false or true), "No" if false else "Yes")):
                rows.append(_row(f"<image>{claim[:-1]}?", says, scene))
        said = mistaken(scene, draw).answer
        claim = draw.choice(sentences(said))
        rows.append(_row(f"Split: {said}", "\n".join(f"- {each}" for each in sentences(said))))
        rows.append(_row(f"Ask: {claim}", f"{claim[:-1]}?"))
    return rows


def _row(instruction: str, output: str, scene: Scene | None = None) -> dict[str, Any]:
    return {"instruction": instruction, "output": output, "images": [str(scene.image)] if scene else []}


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
            row = {"instruction": f"<image>{QUESTION}", "chosen": pair[0], "rejected": pair[1]}
            rows.append(row | {"images": [str(scene.image)]})
    return rows
