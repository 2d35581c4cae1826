"""The pictures show what they are said to show, and descriptions are graded by their claims."""

from pathlib import Path

import pytest

from uni_dpo.demo.scenes import COLOURS, PLACES, SPLITS, Scene, claims, right_claims, write_scenes
from uni_dpo.engine import Question

TRUTH = Scene((("top left", "red", "disc"), ("bottom right", "blue", "cross")))


def test_a_description_says_everything() -> None:
    assert TRUTH.answer == "Two shapes. Red disc top left. Blue cross bottom right."
    assert claims(TRUTH.answer) == {
        ("two shapes",),
        *(("top left", said) for said in ("red", "disc")),
        *(("bottom right", said) for said in ("blue", "cross")),
    }


@pytest.mark.parametrize(
    ("said", "grade"),
    [
        (TRUTH.answer, 1.0),
        ("Two shapes. Red disc top left.", 2 * 3 / (3 + 5)),
        ("One shape. Red disc top left.", 2 * 2 / (3 + 5)),
        (TRUTH.answer.replace("Red", "Green"), 2 * 4 / 10),
        (TRUTH.answer.replace("bottom right", "top right"), 2 * 3 / 10),
        ("Red disc top left. Green disc top left.", 2 * 2 / (3 + 5)),
        ("Nothing to see.", 0.0),
        ("", 0.0),
    ],
)
def test_grades_by_hand(said: str, grade: float) -> None:
    assert right_claims(said, Question("q", "?", reference=TRUTH.answer)) == pytest.approx(grade)


def test_pictures_differ_and_show_their_colours_where_they_are_said_to_be(tmp_path: Path) -> None:
    from PIL import Image

    splits = write_scenes(tmp_path, side=56)
    assert {name: len(scenes) for name, scenes in splits.items()} == dict(SPLITS)
    scenes = [scene for split in splits.values() for scene in split]
    assert len({scene.things for scene in scenes}) == len(scenes)
    for scene in scenes[:40]:
        with Image.open(scene.image) as picture:
            for place, colour, _ in scene.things:
                left, top = 28 * ("right" in place), 28 * ("bottom" in place)
                seen = picture.crop((left, top, left + 28, top + 28)).getdata()
                assert COLOURS[colour] in set(seen)
    grounds = set()
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        scene = next(s for s in scenes if PLACES[2 * down + right] not in {place for place, *_ in s.things})
        with Image.open(scene.image) as picture:
            grounds.add(picture.getpixel((14 + 28 * right, 14 + 28 * down)))
    assert len(grounds) == 4  # each place shows which it is
    again = write_scenes(tmp_path / "again", side=56)
    assert [scene.things for scene in again["train"]] == [scene.things for scene in splits["train"]]
