"""The table says what was asked, how it was judged, and what it does not know."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from uni_dpo.report.statistics import Outcomes
from uni_dpo.vlmeval.results import Line, Results, as_markdown, as_rich_table, write_results
from uni_dpo.vlmeval.score import Score


def score(hits: list[int], *, known: bool = True) -> Score:
    parts = 100 * np.array(hits, dtype="float64").reshape(-1, 1) / len(hits)
    outcomes = Outcomes([str(i) for i in range(len(hits))], parts, "sum")
    return Score(
        "Overall", float(parts.sum()), {"Overall": float(parts.sum())}, "exact_matching", outcomes if known else None
    )


def line(model: str, benchmark: str, given: Score | None = None, **told: object) -> Line:
    plain = {"rows": 4, "skipped": 0, "limit": None, "data": "official", "prompt_style": "instruct"}
    return Line(model, benchmark, **{**plain, **told}, score=given)  # type: ignore[arg-type]


@pytest.fixture
def results() -> Results:
    return Results(
        [
            line("a", "POPE", score([0, 0, 1, 1])),
            line("a", "mine", score([1, 1, 1, 1], known=False), data="own", limit=4, skipped=2),
            line("a", "MME", data="modified", reason="no [such] column | at all"),
            line("b", "POPE", score([1, 1, 1, 1])),
            line("b", "mine", score([0, 1, 1, 1], known=False), data="own", limit=4, skipped=2),
            line("b", "MME", score([1, 1, 0, 0]), data="modified"),
        ],
        "vlmeval 1",
    )


def test_differences(results: Results) -> None:
    certain = results.difference("b", "POPE")
    assert certain is not None
    assert certain.value == 50
    assert certain.low is not None
    assert certain.high is not None
    assert 0 <= certain.low < 50 < certain.high <= 100
    assert str(results.difference("b", "mine")) == "-25.00", "no interval where the rows are not known"
    assert results.difference("b", "MME") is None
    assert results.difference("a", "POPE") is None
    assert results.value("b", "MME") == 50
    with pytest.raises(KeyError):
        results.value("a", "MME")


def test_the_markdown_says_everything(results: Results) -> None:
    text = as_markdown(results)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()[:5]]
    assert rows[0] == ["benchmark", "metric", "judge", "rows", "a", "b", "b − a [95 %]"]
    assert rows[2][:6] == ["POPE", "Overall", "exact_matching", "4", "50.00", "100.00"]
    assert rows[3][3:] == ["4 (first 4, 2 bad left out, own data)", "100.00", "75.00", "-25.00"]
    assert rows[4][3:] == ["4 (modified data)", "failed", "50.00", "–"]
    assert "a on MME failed: no [such] column | at all" in text


def test_answers_that_were_cut_are_named(tmp_path: Path) -> None:
    results = Results([line("a", "POPE", score([1, 0]), rows=1200, cut=7)], "vlmeval 1")
    assert "a on POPE: 7 of 1,200 answers were cut; raise max_new_tokens" in as_markdown(results)
    write_results(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["results"][0]["cut"] == 7


def test_models_whose_questions_unlike_classes_word_are_told_apart(results: Results) -> None:
    assert "worded by" not in as_markdown(results)
    lines = [line("a", "POPE", score([1, 0])), line("b", "POPE", score([1, 1]), wording="Qwen3VLChat")]
    assert "questions are worded by Qwen2VLChat and Qwen3VLChat" in as_markdown(Results(lines, "vlmeval 1"))


def test_the_terminal_shows_brackets_as_they_are(results: Results) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(as_rich_table(results))
    shown = console.export_text()
    assert "no [such] column | at all" in shown
    assert str(results.difference("b", "POPE")) in shown


def test_the_files(results: Results, tmp_path: Path) -> None:
    write_results(results, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(first) == ["results.csv", "results.json", "results.md"]
    write_results(Results(results.lines, "vlmeval 1"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["score"] for row in rows] == ["50.0", "100.0", "", "100.0", "75.0", "50.0"]
    content = json.loads(first["results.json"])
    assert (content["vlmevalkit"], content["baseline"]) == ("vlmeval 1", "a")
    assert content["results"][2]["failed"] == "no [such] column | at all"
    assert content["results"][3]["low"] == results.difference("b", "POPE").low  # type: ignore[union-attr]
