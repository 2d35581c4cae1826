"""The whole demo, shortened, and a second start that goes on where the first stopped."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from uni_dpo.demo import run, stages
from uni_dpo.demo.digits import SPLITS
from uni_dpo.demo.settings import DPO, UNI_DPO, WARM_UP, DemoSettings
from uni_dpo.errors import UniDPOError

SHORT = DemoSettings(
    warm_up=WARM_UP | {"num_train_epochs": 3},
    samples=4,
    uni_dpo=UNI_DPO | {"max_steps": 3, "logging_steps": 1},
    dpo=DPO | {"max_steps": 3, "logging_steps": 1},
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[run.DemoResult, str]:
    """A short demo and what it printed."""
    console = Console(width=120, record=True)
    result = run.run_demo(tmp_path_factory.mktemp("demo"), SHORT, console)
    return result, console.export_text()


def test_every_stage_leaves_what_it_says(finished: tuple[run.DemoResult, str]) -> None:
    result, printed = finished
    pairs = json.loads((result.folder / "pairs" / "dataset" / "pairs.json").read_text())
    assert len(pairs) == result.pairs > 0
    assert all(0 <= pair["score_rejected"] < pair["score_chosen"] <= 5 for pair in pairs)
    names = {Path(pair["images"][0]).name for pair in pairs}
    assert len(names) <= SPLITS["preference"]
    for place in run.MODELS.values():
        assert (result.folder / place / "checkpoint" / "model.safetensors").is_file()
        assert (result.folder / place / "checkpoint" / "trainer_state.json").is_file()
        assert (result.folder / place / "train.log").is_file()
    assert (result.folder / "curves.png").stat().st_size > 10_000
    assert all(0 <= share <= 1 for share in result.held_out.values())
    for name in run.MODELS:
        assert set(result.benchmarks[name]) == {"digits_mcq", "digits_vqa"}
        assert f"{result.held_out[name]:.1%}" in printed


def test_no_held_out_image_is_trained_on(finished: tuple[run.DemoResult, str]) -> None:
    folder = finished[0].folder
    trained = {
        Path(row["images"][0]).name
        for file in (folder / "warm_up/data/digits.json", folder / "pairs/dataset/pairs.json")
        for row in json.loads(file.read_text())
    }
    tables = (folder / "benchmarks/digits_mcq.tsv").read_text()
    assert len(trained) > SPLITS["train"]
    assert not any(name in tables for name in trained)


def test_a_second_start_repeats_nothing(finished: tuple[run.DemoResult, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("done before")

    for stage in ("warm_up", "make_pairs", "align", "exact_match"):
        monkeypatch.setattr(stages, stage, never)
    monkeypatch.setattr(run, "_benchmarks", never)
    assert run.run_demo(finished[0].folder, SHORT, Console(quiet=True)) == finished[0]


def test_other_settings_want_another_folder(finished: tuple[run.DemoResult, str]) -> None:
    with pytest.raises(UniDPOError, match="other settings"):
        run.run_demo(finished[0].folder, DemoSettings(seed=7), Console(quiet=True))
