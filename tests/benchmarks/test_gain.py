"""The tables of docs/gain.md, on rows whose figures are worked out by hand, and what spoils the scores."""

import dataclasses
import importlib
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rich.console import Console

FOLDER = Path(__file__).parents[2] / "benchmarks"
ROWS = {"digits": "gain_rows.jsonl", "scenes": "gain_scenes_rows.jsonl"}


def read(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / file).read_text(encoding="utf-8").splitlines()]


def searched(method: str, settings: str, seed: int, share: float) -> dict[str, Any]:
    return {"id": f"{seed}/{method}/{settings}", "method": method, "settings": settings, "validation": share}


def ran(method: str, seed: int, right: str | list[float], condition: str = "clean") -> dict[str, Any]:
    return {
        "id": f"{method}/{seed}/{condition}",
        "method": method,
        "seed": seed,
        "condition": condition,
        "right": right,
    }


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module("gain_table")
    sys.modules.pop("gain_table")


def test_settings_are_chosen_by_their_mean_on_validation(table: ModuleType) -> None:
    """b: (0.6 + 0.2) / 2 = 40 %; c: (0.4 + 0.5) / 2 = 45 %; a has 90 %, but on one seed only."""
    rows = [searched("DPO", "a", 1, 0.9), searched("DPO", "b", 1, 0.6), searched("DPO", "c", 1, 0.4)]
    rows += [searched("DPO", "b", 2, 0.2), searched("DPO", "c", 2, 0.5)]
    assert table.best_settings(rows) == {"DPO": ("c", pytest.approx(45.0), 3)}


def test_of_equal_settings_the_first_counts(table: ModuleType) -> None:
    assert table.best_settings([searched("m", "a", 1, 0.5), searched("m", "b", 1, 0.5)])["m"][0] == "a"


def test_a_difference_is_the_mean_over_shared_seeds_and_questions(table: ModuleType) -> None:
    """Seed 0: 2 more of 4; seed 1: 1 less of 4; seed 2 has no partner: (50 − 25) / 2 = 12.5 points."""
    right = table.right_of([ran("a", 0, "1110"), ran("a", 1, "0100"), ran("a", 2, "1111"), ran("b", 0, "1000"),
                            ran("b", 1, "0101")])["clean"]  # fmt: skip
    middle, low, high = table.difference(right["a"], right["b"])
    assert middle == pytest.approx(12.5)
    assert low < 0 < high


def test_the_interval_is_that_of_drawing_seeds_and_questions_again(table: ModuleType) -> None:
    """Against a naive loop that draws both with replacement."""
    draw = np.random.default_rng(5)
    ours, theirs = ({seed: draw.integers(0, 2, 30).astype(float) for seed in range(4)} for _ in range(2))
    gaps = 100 * np.stack([ours[seed] - theirs[seed] for seed in range(4)])
    means = [gaps[draw.integers(0, 4, 4)][:, draw.integers(0, 30, 30)].mean() for _ in range(20_000)]
    _, low, high = table.difference(ours, theirs)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.7)


def test_equal_on_every_question_is_an_interval_of_nothing(table: ModuleType) -> None:
    right = {0: np.array([1.0, 0.0]), 1: np.array([0.0, 1.0])}
    assert table.difference(right, right) == (0.0, 0.0, 0.0)


def test_a_line_of_the_table(table: ModuleType) -> None:
    """All seeds alike in every question, so that no resample differs: 100 − 0, 100 − 0 and nothing against itself."""
    rows = [ran(table.START, seed, "00") for seed in (0, 1)]
    rows += [ran(name, seed, right) for name, right in (("DPO", "00"), ("Uni-DPO", "11")) for seed in (0, 1)]
    rows.append(ran("Uni-DPO", 0, "10", "noisy scores"))
    right = table.right_of(rows)
    start = right["clean"].pop(table.START)
    dpo, uni_dpo = table.summary(right["clean"], start)
    assert dpo == ("DPO", "2", "0.0", "0.0", "+0.0 (+0.0 … +0.0)", "", "-100.0 (-100.0 … -100.0)")
    assert uni_dpo == ("Uni-DPO", "2", "100.0", "100.0", "+100.0 (+100.0 … +100.0)", "+100.0 (+100.0 … +100.0)", "")
    printed = io.StringIO()
    table.print_tables(rows, Console(file=printed, width=150))
    assert "before, by seed: 0.0, 0.0" in printed.getvalue()
    assert "noisy scores: test images" in printed.getvalue()


def test_rows_hold_a_number_for_each_question_where_an_answer_can_be_half_right(table: ModuleType) -> None:
    """(0.86 + 0.5) / 2 = 68 %, and 43 above (0.5 + 0) / 2; the title says what the figures are."""
    rows = [ran("DPO", 0, [0.5, 0.0]), ran("Uni-DPO", 0, [0.86, 0.5])]
    right = table.right_of(rows)["clean"]
    assert [line[2] for line in table.summary(right, {})] == ["25.0", "68.0"]
    assert table.difference(right["Uni-DPO"], right["DPO"])[0] == pytest.approx(43.0)
    printed = io.StringIO()
    table.print_tables([row | {"task": "scenes"} for row in rows], Console(file=printed, width=150))
    assert "clean: test pictures, claims right (F1), in per cent" in " ".join(printed.getvalue().split())


@pytest.fixture
def gain(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("llamafactory")
    yield importlib.import_module("gain")
    for name in ("gain", "demo_training"):
        sys.modules.pop(name)


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"chosen": f"c{n}", "rejected": f"r{n}", "score_chosen": 5.0, "score_rejected": 4.0} for n in range(count)]


def test_swapped_pairs_keep_their_scores(gain: ModuleType) -> None:
    rows = gain.spoiled(pairs(40), "15 % swapped", 0)
    swapped = [row for row in rows if row["chosen"].startswith("r")]
    assert len(swapped) == 6  # 15 % of 40
    assert all(row["rejected"] == "c" + row["chosen"][1:] for row in swapped)
    assert {(row["score_chosen"], row["score_rejected"]) for row in rows} == {(5.0, 4.0)}


def test_of_noisy_scores_the_higher_one_is_chosen(gain: ModuleType) -> None:
    """The difference of two noises of 1.5 has a deviation of 2.12, so a gap of 1 turns round in Φ(−0.47) = 32 %."""
    rows = gain.spoiled(pairs(2000), "noisy scores", 0)
    assert all(row["score_chosen"] >= row["score_rejected"] for row in rows)
    assert sum(row["chosen"].startswith("r") for row in rows) / 2000 == pytest.approx(0.319, abs=0.03)
    assert all(row["chosen"][1:] == row["rejected"][1:] for row in rows)


def test_clean_pairs_stay_as_they_are(gain: ModuleType) -> None:
    assert gain.spoiled(pairs(3), "clean", 0) == pairs(3)


def test_every_method_has_the_same_budget_of_search(gain: ModuleType) -> None:
    for plan in gain.PLANS.values():
        assert {len(tried) for tried in plan.methods.values()} == {6}
        assert all(len({gain.words(s) for s in tried}) == 6 for tried in plan.methods.values())


def test_each_job_is_done_once_by_however_many_processes(
    gain: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[str] = []

    class World:
        def __init__(self, folder: Path, plan: object, pictures: object, seed: int) -> None:
            self.seed = seed

        def row(self, job: Any) -> dict[str, Any]:
            done.append(job.key)
            return {"id": job.key, "seed": job.seed, "method": job.method, "settings": "", "validation": 0.5}

    monkeypatch.setattr(gain, "World", World)
    plan = dataclasses.replace(gain.PLANS["scenes"], task=dataclasses.replace(gain.SCENES, write=lambda *_, **__: {}))
    jobs = gain.searches(plan)
    gain.Bench(tmp_path, plan, 0.0).do(jobs)
    assert done == []  # its minutes are over
    gain.Bench(tmp_path, plan, 60.0).do(jobs[:2])
    gain.Bench(tmp_path, plan, 60.0).do(jobs[:3])
    assert done == [job.key for job in jobs[:3]]
    assert list(gain.Bench(tmp_path, plan, 60.0).rows()) == done


@pytest.mark.parametrize("task", ROWS)
def test_the_rows_are_those_that_would_run(gain: ModuleType, task: str) -> None:
    plan, rows = gain.PLANS[task], read(ROWS[task])
    jobs = gain.searches(plan) + gain.runs(plan, range(5), rows)
    assert {job.key for job in jobs} == {row["id"] for row in rows}


def test_a_row_keeps_whole_answers_as_a_text_and_others_in_thousandths(gain: ModuleType) -> None:
    assert gain.kept([1.0, 0.0, 1.0]) == "101"
    assert gain.kept([1.0, 6 / 7]) == [1.0, 0.857]


def test_every_run_has_the_settings_that_the_search_chose(gain: ModuleType) -> None:
    """Of each seed: the start, 3 × 8 runs, and two with more pairs or rounds."""
    plan = gain.PLANS["scenes"]
    searched_rows = [
        {"seed": job.seed, "method": job.method, "settings": gain.words(job.settings), "validation": at % 6 == 4}
        for at, job in enumerate(gain.searches(plan))
    ]
    jobs = gain.runs(plan, [0, 1], [*searched_rows, ran("DPO", 0, "11")])
    assert len({job.key for job in jobs}) == len(jobs) == 2 * (1 + 3 * 8 + 2)
    for job in jobs:
        expected = plan.methods.get(job.method, plan.methods[gain.UNI_DPO])[4]
        assert job.settings == ({} if job.method == gain.START else expected)


@pytest.mark.parametrize("task", ROWS)
def test_the_pages_show_what_the_rows_say(table: ModuleType, task: str) -> None:
    printed = io.StringIO()
    table.print_tables(read(ROWS[task]), Console(file=printed, width=150))
    shown = "\n".join(line.rstrip() for line in printed.getvalue().splitlines())
    for page in ("docs/gain.md", "docs/zh/gain.md"):
        assert shown in (FOLDER.parent / page).read_text(encoding="utf-8"), page
