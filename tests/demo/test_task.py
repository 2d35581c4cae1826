"""The files that a demo starts from."""

import json
from pathlib import Path

import pytest

from uni_dpo.align.config import AlignConfig
from uni_dpo.align.stages import AlignStages
from uni_dpo.demo.digits import SPLITS, answer, closeness
from uni_dpo.demo.task import QUESTION_FILES, write_task
from uni_dpo.engine import Question
from uni_dpo.errors import UniDPOError

ROOT = Path(__file__).parents[2]


def test_the_task_is_whole_and_the_example_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_task("digits", "outputs/demo")
    images: dict[str, set[str]] = {
        "warm_up": {row["images"][0] for row in json.loads((folder / "warm_up.json").read_text())}
    }
    for split, name in QUESTION_FILES.items():
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        assert len(rows) == SPLITS[split]
        images[name] = {row["images"][0] for row in rows}
    assert len(set.union(*images.values())) == sum(map(len, images.values())) == sum(SPLITS.values())
    config = AlignConfig.load(ROOT / "examples" / "align" / "digits.yaml")
    names = [stage.name for stage in AlignStages(config)]
    assert names[0] == "warm-up"
    assert {"1/train", "1/DPO/train", "benchmarks"} <= set(names)
    before = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert write_task("digits", folder) == folder
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UniDPOError, match="name another folder, or delete it"):
        write_task("digits", folder, seed=1)


@pytest.mark.parametrize(
    ("given", "grade"),
    [
        (answer(3), 1.0),
        (f" {answer(3)}\n", 1.0),
        (answer(4), 0.4 * 8 / 9),
        (answer(2), 0.4 * 8 / 9),
        (answer(9), 0.4 * 3 / 9),
        ("The digit is three three.", 0.0),
        ("three", 0.0),
        ("", 0.0),
    ],
)
def test_closeness_by_hand(given: str, grade: float) -> None:
    question = Question(id="q", text="?", images=(), reference=answer(3))
    assert closeness(given, question) == pytest.approx(grade)
