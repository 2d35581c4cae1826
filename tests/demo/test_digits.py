"""The splits never mix and are the same for the same seed."""

from pathlib import Path

from uni_dpo.demo.digits import SPLITS, Digit, write_digits


def test_splits_are_whole_disjoint_and_real_images(digits: dict[str, list[Digit]]) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    assert {split: len(rows) for split, rows in digits.items()} == dict(SPLITS)
    paths = [digit.image for rows in digits.values() for digit in rows]
    assert len(set(paths)) == len(paths) == len(load_digits().target)
    first = digits["held_out"][0]
    index = int(first.image.stem.removeprefix("digit_"))
    assert first.label == load_digits().target[index]
    with Image.open(first.image) as image:
        assert image.size == (56, 56)


def test_the_seed_decides_the_splits(tmp_path: Path) -> None:
    one, same, other = (
        [digit.image.name for digit in write_digits(tmp_path, side=28, seed=seed)["train"]] for seed in (1, 1, 2)
    )
    assert one == same != other
