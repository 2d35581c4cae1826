"""The page of an evaluation: what stands in it, against the rows that it was made of."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from uni_dpo.demo.digits import Digit, write_mcq, write_vqa
from uni_dpo.vlmeval.page import AnsweredRow, readable, write_evaluation_page
from uni_dpo.vlmeval.results import Line, Results
from uni_dpo.vlmeval.run import Options, evaluate_tables
from uni_dpo.vlmeval.score import Score


def data_of(page: Path) -> dict[str, Any]:
    return json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])


def score(hits: list[int]) -> Score:
    import numpy as np

    from uni_dpo.report.statistics import Outcomes

    parts = 100 * np.array(hits, dtype="float64").reshape(-1, 1) / len(hits)
    return Score(
        "Overall", float(parts.sum()), {}, "exact_matching", Outcomes(list(map(str, range(len(hits)))), parts, "sum")
    )


def rows(replies: str) -> list[AnsweredRow]:
    return [
        AnsweredRow(str(at), f"q{at}", "A", reply, (), "even" if at % 2 == 0 else "odd", reply != "?")
        for at, reply in enumerate(replies)
    ]


@pytest.fixture
def page(tmp_path: Path) -> dict[str, Any]:
    first, second = [1, 0, 1, 0, 0, 1], [1, 1, 1, 1, 0, 0]
    lines = [
        Line(model, name, 6, 0, None, "own", "instruct", score=score(hits))
        for name in ("one", "two")
        for model, hits in (("before", first), ("after", second if name == "one" else first))
    ]
    replies = {("before", "one"): "ABABBA", ("after", "one"): "AAAAB?", ("before", "two"): "A", ("after", "two"): "A"}
    answered = {key: rows(said) for key, said in replies.items()}
    return data_of(write_evaluation_page(Results(lines, "vlmeval"), answered, tmp_path))


def test_scores_and_differences_are_scipys(page: dict[str, Any]) -> None:
    found = {(row["model"], row["benchmark"]): row for row in page["evaluation"]["rows"]}
    theirs = stats.ttest_rel([100, 100, 100, 100, 0, 0], [100, 0, 100, 0, 0, 100])
    row = found["after", "one"]
    assert row["difference"] == pytest.approx(100 / 6)
    assert row["p"] == pytest.approx(theirs.pvalue)
    assert row["p_holm"] == pytest.approx(min(1, 2 * theirs.pvalue))
    assert row["difference_interval"] == pytest.approx([*theirs.confidence_interval(0.95)])
    assert row["smallest"] > 0
    assert row["unreadable"] == 1
    assert found["after", "two"]["p"] == 1
    assert found["before", "one"]["p"] is None


def test_what_changed_comes_first_and_is_named(page: dict[str, Any]) -> None:
    pairs, groups = page["pairs"], page["groups"]
    bits = dict(zip(pairs["pair"], pairs["groups"], strict=True))
    named = {name: [pair for pair in bits if bits[pair] >> at & 1] for at, name in enumerate(groups)}
    assert named["right to wrong"] == ["one, 5"]
    assert sorted(named["wrong to right"]) == ["one, 1", "one, 3"]
    assert named["unreadable"] == ["one, 5"]
    assert pairs["pair"][:5] == ["one, 1", "one, 3", "one, 5", "one, 0", "one, 2"], "else in the order of the file"
    found = page["evaluation"]["categories"]
    categories = {(row["benchmark"], row["model"], row["category"]): row["score"] for row in found}
    assert categories["one", "before", "even"] == pytest.approx(200 / 3)
    assert categories["one", "after", "odd"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("reply", "kind", "can"),
    [
        ("", "VQA", False), ("cat", "VQA", True), ("B", "MCQ", True), ("I do not know", "MCQ", False),
        ("Yes, it is", "Y/N", True), ("perhaps", "Y/N", False), ("yes and no", "Y/N", False),
    ],
)  # fmt: skip
def test_what_can_be_read(reply: str, kind: str, can: bool) -> None:
    assert readable(reply, {"A": "a cat", "B": "a dog"}, kind) is can


def test_a_real_evaluation_writes_its_page(
    kit: str, tiny_qwen2_vl: Path, digits: dict[str, list[Digit]], tmp_path: Path
) -> None:
    seen = digits["held_out"][:6]
    tables = {"choices": write_mcq(seen, tmp_path / "mcq.tsv"), "answers": write_vqa(seen, tmp_path / "vqa.tsv")}
    model = {"model_path": str(tiny_qwen2_vl), "max_new_tokens": 4, "dtype": "float32", "device": "cpu"}
    results = evaluate_tables({"one": model, "two": model}, tables, tmp_path / "eval", Options())
    page = data_of(tmp_path / "eval" / "report.html")
    assert len(page["evaluation"]["rows"]) == 4
    scores = {row["score"] for row in page["evaluation"]["rows"] if row["benchmark"] == "choices"}
    assert scores == {results.value("one", "choices")}
    assert len(page["pairs"]["pair"]) == 12
    assert all(bits & 8 for bits in page["pairs"]["groups"])
    assert len(page["images"]) == 6
    assert all(image.startswith("data:image/jpeg") for image in page["images"])
