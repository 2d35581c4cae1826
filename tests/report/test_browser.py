"""Pages in a real browser: sorted, filtered, marked, exported, dark, narrow; no error and no request to anywhere."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tests.report.runs import HOSTILE, write_run

from uni_dpo.data.checks.check import check_dataset
from uni_dpo.report.check import write_check_page
from uni_dpo.report.data import write_data_page
from uni_dpo.report.page import write_page
from uni_dpo.report.run import write_run_page


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return write_run_page([write_run(folder / "one"), write_run(folder / "two", seed=1)])


def rows(browser: Any) -> list[str]:
    return browser.run("[...document.querySelectorAll('.row .texts p:first-child')].map((one) => one.textContent)")


def set_value(browser: Any, selector: str, value: str, event: str) -> None:
    one = f"const one = document.querySelector({json.dumps(selector)})"
    browser.run(f"{{ {one}; one.value = {json.dumps(value)}; one.dispatchEvent(new Event({json.dumps(event)})); }}")
    browser.settle()


def choose(browser: Any, which: str, value: str) -> None:
    set_value(browser, f"#{which}", value, "change")


def test_a_page_draws_everything_without_an_error_or_a_request(browser: Any, run_page: Path) -> None:
    browser.open(run_page)
    assert browser.complaints() == []
    assert browser.requests() == []
    assert browser.run("document.querySelectorAll('.verdicts li').length") >= 10
    drawn = browser.run("[...document.querySelectorAll('#curves svg')].map((one) => one.getAttribute('aria-label'))")
    assert {"loss", "gradient norm", "pairs per second", "answer tokens per second", "peak memory, GiB"} <= {*drawn}
    assert browser.run("document.querySelectorAll('canvas').length") == 1
    assert len(rows(browser)) > 5
    assert browser.run("document.querySelector('.row img').naturalWidth") > 0


def test_the_page_of_a_check_has_its_tables_and_histograms(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    row = {"instruction": "Which?", "chosen": "this", "rejected": "that", "score_rejected": 1.0}
    file.write_text(json.dumps([row | {"score_chosen": score} for score in (2.0, 3.0, HOSTILE)]))
    browser.open(write_check_page(tmp_path / "page.html", check_dataset(str(file))))
    assert (browser.complaints(), browser.requests()) == ([], [])
    titles = browser.run("[...document.querySelectorAll('h2')].map((one) => one.textContent)")
    assert titles == ["Summary", "Faults", "The first faults", "Pairs", "Distributions", "Scores"]
    assert browser.run(
        "[...document.querySelectorAll('#histograms svg')].map((one) => one.querySelectorAll('rect').length)"
    ) == [40, 20]
    assert browser.run("document.body.textContent.includes('onerror=alert')")
    assert browser.run("document.querySelectorAll('img[src=x]').length") == 0


def test_texts_are_shown_as_texts(browser: Any, run_page: Path) -> None:
    browser.open(run_page)
    browser.run("document.querySelector('.row[data-at=\"0\"]').click()")
    browser.settle()
    assert browser.run("document.querySelector('dialog pre').textContent") == f"Question 0? {HOSTILE}"
    assert browser.run("document.querySelectorAll('dialog img').length") == 1
    assert browser.run("document.querySelectorAll('dialog svg').length") == 1
    browser.run("document.querySelector('dialog').close()")
    assert browser.run("document.querySelectorAll('img[src=x]').length") == 0
    assert browser.complaints() == []


def test_sorting_and_filtering(browser: Any, run_page: Path) -> None:
    browser.open(run_page)
    choose(browser, "group", "4")
    assert sorted(rows(browser)) == sorted(f"pairs.json, row {at}" for at in range(4))
    choose(browser, "group", "")
    choose(browser, "sort", "last_reward_margin")
    assert {*rows(browser)[:4]} == {f"pairs.json, row {at}" for at in range(4)}
    browser.run("document.getElementById('down').click()")
    browser.settle()
    assert not {*rows(browser)[:4]} & {f"pairs.json, row {at}" for at in range(4)}
    set_value(browser, "#search", "ANSWER 17", "input")
    assert rows(browser) == ["pairs.json, row 17"]
    assert browser.run("document.getElementById('count').textContent").startswith("1 / 40")


def test_marked_pairs_are_exported_as_the_file_that_data_apply_reads(
    browser: Any, run_page: Path, tmp_path: Path
) -> None:
    from uni_dpo.data.marked import apply_marks

    browser.open(run_page)
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    choose(browser, "group", "4")
    browser.run("document.getElementById('mark-all').click()")
    browser.run("document.querySelector('.row[data-at=\"1\"]').click()")
    set_value(browser, "dialog select", "swap", "change")
    browser.run("document.querySelector('dialog').close()")
    browser.run("document.getElementById('export').click()")
    exported = tmp_path / "marked.jsonl"
    for _ in range(100):
        browser.settle()
        if exported.is_file() and exported.stat().st_size:
            break
    marks = {mark["pair"]: mark["action"] for mark in map(json.loads, exported.read_text().splitlines())}
    assert marks == {f"pairs.json, row {at}": "swap" if at == 1 else "drop" for at in range(4)}
    scores = {"score_chosen": 2, "score_rejected": 1}
    data = [{"instruction": "q", "chosen": f"c{at}", "rejected": f"r{at}", **scores} for at in range(40)]
    (tmp_path / "pairs.json").write_text(json.dumps(data))
    done = apply_marks(tmp_path / "pairs.json", exported, tmp_path / "kept.json")
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert (done.rows["drop"], done.rows["swap"], len(kept)) == (3, 1, 37)
    assert kept[0] == {"instruction": "q", "chosen": "r1", "rejected": "c1", "score_chosen": 1, "score_rejected": 2}


def test_dark_chinese_and_narrow(browser: Any, run_page: Path, tmp_path: Path) -> None:
    browser.open(run_page, width=390, height=844, mobile=True)
    browser.run("document.getElementById('theme').click()")
    browser.run("if (document.documentElement.dataset.theme !== 'dark') document.getElementById('theme').click()")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 27)"
    browser.run("if (document.documentElement.lang !== 'zh') document.getElementById('language').click()")
    browser.settle()
    assert browser.run("document.documentElement.lang") == "zh"
    assert browser.run("document.querySelector('h2').textContent").startswith("数字的含义")
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.complaints() == []
    assert browser.requests() == []
    shot = base64.b64decode(browser.call("Page.captureScreenshot", format="png")["data"])
    (tmp_path / "narrow.png").write_bytes(shot)


def test_a_page_of_data_before_training(browser: Any, tmp_path: Path) -> None:
    data = [{"instruction": f"q{at}", "chosen": "c" * (at + 1), "rejected": "r"} for at in range(5)]
    (tmp_path / "pairs.json").write_text(json.dumps(data))
    browser.open(write_data_page(tmp_path / "pairs.json"))
    assert rows(browser) == [f"pairs.json, row {at}" for at in range(5)]
    choose(browser, "group", "2")
    assert rows(browser) == ["pairs.json, row 2", "pairs.json, row 3", "pairs.json, row 4"]
    assert browser.complaints() == []


def test_fifty_thousand_pairs_draw_only_the_rows_in_sight(browser: Any, tmp_path: Path) -> None:
    page = write_run_page([write_run(tmp_path / "many", count=50_000, epochs=2)])
    browser.open(page)
    assert 5 < browser.run("document.querySelectorAll('.row').length") < 40
    browser.run("document.querySelector('.list').scrollTop = 108 * 30000")
    browser.settle()
    assert "pairs.json, row 30000" in rows(browser)
    choose(browser, "group", "4")
    assert browser.run("document.getElementById('count').textContent").startswith("5,000 / 50,000")
    assert browser.complaints() == []


def test_a_page_of_an_evaluation(browser: Any, tmp_path: Path) -> None:
    row = {"model": "after", "benchmark": "one", "score": 52.5, "interval": [40.5, 60.0], "count": 6}
    row |= {"difference": 16.7, "difference_interval": [-3.5, 36.5], "p": 0.04, "p_holm": 0.08}
    row |= {"smallest": 12.0, "unreadable": 1}
    pairs = {"pair": ["one, 0"], "question": ["q"], "chosen": ["A"], "rejected": [HOSTILE], "note": [""]}
    pairs |= {"paths": [""], "images": [[]], "groups": [1]}
    data = {"evaluation": {"rows": [row], "categories": [], "judge": "exact"}, "pairs": pairs}
    data |= {"groups": ["right to wrong"], "answers": ["before", "after"]}
    browser.open(write_page(tmp_path / "report.html", "an evaluation", data))
    cells = browser.run("[...document.querySelectorAll('#evaluation td')].map((one) => one.textContent)")
    assert cells[:6] == ["one", "after", "52.5", "[40.5, 60]", "6", "+16.7"]
    assert browser.run("document.querySelector('.row .second').textContent") == HOSTILE
    assert browser.run("document.querySelectorAll('.row .chosen').length") == 0
    assert browser.complaints() == []


def test_a_page_of_answers_before_and_after(browser: Any, tmp_path: Path) -> None:
    from uni_dpo.inference.compare import ORIGINAL, TRAINED
    from uni_dpo.inference.compare import page as compared

    answers = [("no", HOSTILE), ("same", "same"), ("a", "b")]
    told = [{"id": at, "prompt": f"q{at}", ORIGINAL: one, TRAINED: two} for at, (one, two) in enumerate(answers, 1)]
    (tmp_path / "comparison.html").write_text(compared(told, "before & after", ["epochs: 1"]))
    browser.open(tmp_path / "comparison.html")
    assert browser.run("document.getElementById('summary').textContent") == (
        "Trained with epochs: 1. 2 of 3 answers differ."
    )
    assert rows(browser) == ["1", "2", "3"]
    assert browser.run("document.querySelector('.row .second').textContent") == HOSTILE
    choose(browser, "group", "0")
    assert rows(browser) == ["1", "3"]
    browser.run("document.getElementById('language').click()")
    browser.settle()
    assert browser.run("document.getElementById('summary').textContent").endswith("3 个回答中有 2 个不同。")
    browser.run("document.querySelector('.row').click()")
    assert browser.run("document.querySelector('dialog h2.second').textContent").startswith("训练后的模型")
    assert browser.complaints() == []
    assert browser.requests() == []
