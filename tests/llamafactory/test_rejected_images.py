"""Pairs whose rejected answer sees another image: each side is what a dataset of those images alone gives it."""

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory.reference_cache import answer_digests

EACH = {"disable_shuffling": True, "per_device_train_batch_size": 1, "learning_rate": 0.0, "max_steps": 4}
COLUMNS = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected", "images": "images"}


@pytest.fixture
def contrast(pair_data: Any, digits: dict[str, list[Any]], tmp_path: Path) -> None:
    """The datasets `contrast`, and of the same pairs `clear` and `blurred`, in which both sides see one kind.

    The blurred images are twice as large, so that their prompts are longer; the third pair has no images, and both
    answers of the fourth see the same.
    """
    rows: list[dict[str, Any]] = []
    for at, digit in enumerate(digits["preference"][:4]):
        other = tmp_path / f"{at}.png"
        with Image.open(digit.image) as image:
            image.resize((image.width * 2, image.height * 2)).save(other)
        answer = f"{digit.answer} yes" * (1 + at)
        row = {"instruction": "<image>What is it?", "chosen": answer, "rejected": answer if at else "no"}
        row |= {"score_chosen": 4.0, "score_rejected": 1.0 + at}
        seen = {"images": [str(digit.image)], "rejected_images": [str(other)]}
        rows.append(row | seen)
    rows[2] |= {"instruction": "What is it?", "rejected": "nothing", "images": [], "rejected_images": []}
    rows[3] |= {"rejected": "nothing", "rejected_images": None}
    pair_data.add("contrast", rows, columns=COLUMNS | {"rejected_images": "rejected_images"})
    bare = [{name: value for name, value in row.items() if name != "rejected_images"} for row in rows]
    pair_data.add("clear", bare, columns=COLUMNS)
    blurred = [row | {"images": row["rejected_images"] or row["images"]} for row in rows]
    for row in blurred:
        del row["rejected_images"]
    pair_data.add("blurred", blurred, columns=COLUMNS)


def series(log: list[dict[str, Any]], name: str) -> list[float]:
    return [line[name] for line in log if "loss" in line]


def test_each_side_sees_its_own_images(train: Any, contrast: None, tmp_path: Path) -> None:
    clear, blurred = (train(**EACH, dataset=name) for name in ("clear", "blurred"))
    cached = {"precompute_ref_log_probs": True, "ref_cache_dir": str(tmp_path / "cache")}
    for settings in ({}, {"pair_forward": "ordinary"}, cached):
        log = train(**EACH, dataset="contrast", **settings)
        assert series(log, "logps/chosen") == pytest.approx(series(clear, "logps/chosen"), abs=1e-5)
        assert series(log, "logps/rejected") == pytest.approx(series(blurred, "logps/rejected"), abs=1e-5)
        assert series(log, "rewards/margins") == pytest.approx([0.0] * 4, abs=1e-5)
        for at, loss in enumerate(series(log, "loss")):  # by hand: both models are one, so the NLL term is off
            gap = series(log, "logps/chosen")[at] - series(log, "logps/rejected")[at]
            weight = 1 / (1 + math.exp(-0.7 * (3.0 - at)))
            assert loss == pytest.approx(weight * (1 / (1 + math.exp(2.0 * gap - 2.0))) ** 3 * math.log(2), rel=1e-4)
    apart = abs(series(clear, "logps/rejected")[1] - series(blurred, "logps/rejected")[1])
    assert apart > 1e-4  # or the test would tell nothing


@pytest.mark.parametrize("ledger", [True, False])
def test_other_losses_see_them_too(train: Any, contrast: None, ledger: bool) -> None:
    settings = {**EACH, "pref_loss": "sigmoid", "uni_dpo_ledger": ledger}
    logs = {name: train(**settings, dataset=name) for name in ("contrast", "clear", "blurred")}
    for metric, name in (("logps/chosen", "clear"), ("logps/rejected", "blurred")):
        assert series(logs["contrast"], metric) == pytest.approx(series(logs[name], metric), rel=1e-5)


def test_pairs_with_and_without_meet_in_a_batch(train: Any, contrast: None) -> None:
    settings = {**EACH, "dataset": "contrast"}
    each = train(**settings)
    together = train(**settings | {"per_device_train_batch_size": 4, "max_steps": 1})
    assert series(together, "loss")[0] == pytest.approx(sum(series(each, "loss")) / 4, rel=1e-5)


def test_a_stream_carries_them(train: Any, contrast: None) -> None:
    log = train(**EACH, dataset="contrast", streaming=True, dataloader_num_workers=1)
    expected = series(train(**EACH, dataset="contrast"), "loss")
    assert sorted(series(log, "loss")) == pytest.approx(sorted(expected), rel=1e-5)  # LlamaFactory shuffles a stream


def test_the_cache_tells_the_sides_apart(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.png", "b.png")]
    for file in files:
        file.write_bytes(file.name.encode())
    tokens = {f"{side}_{kind}": [1, 2] for side in ("chosen", "rejected") for kind in ("input_ids", "labels")}
    row = {**tokens, "images": [str(files[0])]}
    same = answer_digests(row)
    assert same[0] == same[1]
    chosen, rejected = answer_digests({**row, "rejected_images": [str(files[1])]})
    assert chosen == same[0] != rejected
    assert rejected == answer_digests({**row, "images": [str(files[1])]})[0]


def test_another_stage_refuses_them(train: Any, contrast: None) -> None:
    with pytest.raises(UniDPOError, match="rejected_images train with stage: dpo only"):
        train(stage="rm", dataset="contrast", pref_loss="sigmoid")


def test_a_cut_of_the_rejected_side_is_named(train: Any, contrast: None) -> None:
    with pytest.raises(UniDPOError, match=r"row 1: cutoff_len 30 keeps"):
        train(**EACH, dataset="contrast", cutoff_len=30)
