"""The runner: the same answers whatever the batch, nothing asked twice, nothing reused that is not the same."""

import base64
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.digits import Digit, write_mcq, write_vqa
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import Request
from uni_dpo.storage.writing import holding
from uni_dpo.vlmeval.config import Config, ModelSettings, parse_benchmark
from uni_dpo.vlmeval.run import Options, evaluate, evaluate_tables

NINE = [
    *("ChartQA_TEST", "MMBench_DEV_CN", "MMBench_DEV_EN", "MME", "OCRBench"),
    *("POPE", "ScienceQA_TEST", "SEEDBench_IMG", "TextVQA_VAL"),
]


def predictions(work_dir: Path) -> dict[str, dict[str, str]]:
    """Prediction file → index → prediction, from VLMEvalKit's own files."""
    import pandas as pd

    found = {}
    for path in sorted(work_dir.glob("*/*/*/*.xlsx")):
        frame = pd.read_excel(path, dtype=str, keep_default_na=False)
        found[path.name] = dict(zip(frame["index"], frame["prediction"], strict=True))
    return found


def nine_config(nine: dict[str, Any], model: Path, names: list[str], **settings: Any) -> Config:
    return Config(
        {"tiny": ModelSettings.parse({"model_path": str(model), "max_new_tokens": 6, **settings})},
        {name: parse_benchmark(name, nine[name], name, Path()) for name in names},
    )


@pytest.fixture
def tables(tmp_path: Path, digits: dict[str, list[Digit]]) -> dict[str, Path]:
    seen = digits["held_out"][:7]
    return {"choices": write_mcq(seen, tmp_path / "mcq.tsv"), "answers": write_vqa(seen, tmp_path / "vqa.tsv")}


def test_the_batch_size_changes_no_prediction(kit: str, tiny_qwen2_vl: Path, tables: dict, tmp_path: Path) -> None:
    model = {"tiny": {"model_path": str(tiny_qwen2_vl), "max_new_tokens": 8, "dtype": "float32", "device": "cpu"}}
    found = {}
    for size in (1, 4, 16):
        evaluate_tables(model, tables, tmp_path / str(size), Options(batch_size=size))
        found[size] = predictions(tmp_path / str(size))
    assert {len(rows) for rows in found[1].values()} == {7}
    assert any(text.strip() for rows in found[1].values() for text in rows.values())
    assert found[1] == found[4] == found[16]


def test_all_nine_benchmarks_run_offline(
    kit: str, nine: dict, tiny_qwen2_vl: Path, lmu_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMUData", str(lmu_data))
    assert list(nine) == NINE
    results = evaluate(nine_config(nine, tiny_qwen2_vl, NINE), tmp_path, Options(allow_modified_data=True))
    assert [line.benchmark for line in results.lines] == NINE
    assert not results.failures
    assert {line.data for line in results.lines} == {"modified"}
    assert all(line.score and line.score.outcomes for line in results.lines), "every headline is made of its rows"
    report = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert report.count("modified data") == 9
    assert report.count("exact_matching") == 9
    written = predictions(tmp_path)
    assert {name: len(rows) for name, rows in written.items()} == {
        f"tiny_{name}.xlsx": 16 if name == "MME" else 8 for name in NINE
    }


ANSWERED = {
    "ChartQA_TEST": "0",
    "MME": "Yes",
    "OCRBench": "zero one two three four five six seven eight nine",
    "POPE": "Yes.",
    "ScienceQA_TEST": "A",
    "MMBench_DEV_EN": "A",
}


@pytest.mark.parametrize("name", ANSWERED)
def test_scores_are_vlmevalkits_and_known(
    name: str, nine: dict, tiny_qwen2_vl: Path, lmu_data: Path, digits: dict, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, scripted: Callable,
) -> None:  # fmt: skip
    monkeypatch.setenv("LMUData", str(lmu_data))
    scripted(lambda request: ANSWERED[name])
    results = evaluate(nine_config(nine, tiny_qwen2_vl, [name]), tmp_path, Options(allow_modified_data=True))
    even = sum(digit.label % 2 == 0 for digit in digits["held_out"][:8])
    expected = {
        "ChartQA_TEST": 100 / 8,  # the answers are 0, 10, …, 70
        "MME": 2 * 50.0,  # in both tasks half of the questions and none of the images
        "OCRBench": 8 / 10,  # every answer is contained; 1,000 points are 100
        "POPE": 100 * 2 * even / (2 * even + (8 - even)),
        "ScienceQA_TEST": 100.0,
        "MMBench_DEV_EN": 0.0,  # A is right in one order of the options and wrong in the other
    }
    line = results.lines[0]
    assert line.score is not None
    assert line.score.value == pytest.approx(expected[name])
    assert line.score.judge == "exact_matching"
    assert line.score.outcomes is not None
    assert line.score.outcomes.score() == pytest.approx(expected[name])


def test_a_second_run_in_the_same_work_dir_is_refused(tiny_qwen2_vl: Path, tables: dict, tmp_path: Path) -> None:
    work_dir = tmp_path / "work"
    with holding(work_dir / ".lock", "the first"), pytest.raises(UniDPOError, match="work: another run is at work"):
        evaluate_tables({"tiny": tiny_qwen2_vl}, tables, work_dir)
    assert not work_dir.exists()


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_where_it_was(
    tiny_qwen2_vl: Path, tables: dict, tmp_path: Path, scripted: Callable
) -> None:
    models = {"tiny": tiny_qwen2_vl}
    asked: list[str] = []

    def answer(request: Request) -> str:
        if len(asked) == 5:
            raise Killed
        asked.append(str(request))
        return f"The digit is one. {len(str(request))}"

    scripted(answer)
    with pytest.raises(Killed):
        evaluate_tables(models, tables, tmp_path / "killed")
    assert not list((tmp_path / "killed").glob("results.*"))
    journal = next((tmp_path / "killed").glob("tiny/choices/*/answers-0.jsonl"))
    finished = journal.read_text().count("\n")
    assert finished == 5, "an answer counts as soon as it is there, whatever its batch"
    with journal.open("a") as file:
        file.write('{"index": "6", "ans')  # as a kill in the middle of a write leaves it

    rest = scripted(lambda request: f"The digit is one. {len(str(request))}")
    again = evaluate_tables(models, tables, tmp_path / "killed")
    assert len(rest.asked) == 14 - finished
    assert not {str(request) for request in rest.asked} & set(asked[:finished])

    whole = scripted(lambda request: f"The digit is one. {len(str(request))}")
    straight = evaluate_tables(models, tables, tmp_path / "straight")
    assert len(whole.asked) == 14
    for name in ("results.json", "results.md", "results.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert predictions(tmp_path / "killed") == predictions(tmp_path / "straight")
    assert again.value("tiny", "answers") == straight.value("tiny", "answers")


def test_an_answer_is_reused_only_for_the_very_same_question(
    tiny_qwen2_vl: Path, base_checkpoint: Path, tables: dict, tmp_path: Path, scripted: Callable
) -> None:
    table = {"answers": tables["answers"]}
    backend = scripted(lambda request: "one")

    def asked(model: Any = tiny_qwen2_vl, options: Options | None = None) -> int:
        before = len(backend.asked)
        evaluate_tables({"tiny": model}, table, tmp_path / "work", options)
        return len(backend.asked) - before

    path = str(tiny_qwen2_vl)
    assert asked() == 7
    assert asked() == 0
    assert asked(options=Options(limit=2)) == 2
    assert asked(base_checkpoint) == 7, "another checkpoint, under the same name"
    assert asked({"model_path": path, "prompt_style": "instruct"}) == 0, "what auto had found"
    assert asked({"model_path": path, "max_new_tokens": 5}) == 7
    assert asked({"model_path": path, "use_custom_prompt": False}) == 7
    assert asked({"model_path": path, "concurrency": 2}) == 0, "speed is no matter of the answer"
    text = tables["answers"].read_text(encoding="utf-8")
    tables["answers"].write_text(text.replace("Which digit", "What digit", 1), encoding="utf-8")
    assert asked() == 7
    tables["answers"].write_text(text, encoding="utf-8")
    assert asked() == 0, "the first run's answers are still there"


def test_several_models_stand_side_by_side(
    tiny_qwen2_vl: Path, base_checkpoint: Path, tables: dict, tmp_path: Path, digits: dict, scripted: Callable
) -> None:
    scripted(lambda request: "two" if request.system else "")
    first = {"model_path": str(tiny_qwen2_vl), "system_prompt": "Say two."}
    results = evaluate_tables({"first": first, "second": base_checkpoint}, tables, tmp_path)
    twos = sum(digit.label == 2 for digit in digits["held_out"][:7])
    assert results.models == ["first", "second"]
    assert results.value("first", "answers") == pytest.approx(100 * twos / 7)
    assert results.value("second", "answers") == 0
    difference = results.difference("second", "answers")
    assert difference is not None
    assert difference.value == pytest.approx(-100 * twos / 7)
    with (tmp_path / "results.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    assert [(r["model"], r["benchmark"]) for r in records] == [
        (m, b) for m in ("first", "second") for b in ("choices", "answers")
    ]
    assert "second − first" in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "results.json").read_text())["baseline"] == "first"


def test_a_failed_benchmark_is_named_and_the_others_stand(
    tiny_qwen2_vl: Path, tables: dict, tmp_path: Path, scripted: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uni_dpo.vlmeval.own_data import OwnMCQ

    def broken(self: object, *arguments: object, **named: object) -> None:
        raise AssertionError("no such column")

    monkeypatch.setattr(OwnMCQ, "evaluate", broken)
    scripted(lambda request: "one")
    results = evaluate_tables({"tiny": tiny_qwen2_vl}, tables, tmp_path)
    assert [line.benchmark for line in results.failures] == ["choices"]
    assert "no such column" in str(results.failures[0].reason)
    assert results.value("tiny", "answers") >= 0
    report = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "tiny on choices failed" in report
    assert "no such column" in report


def _half(image: Path, path: Path) -> None:
    path.write_bytes(image.read_bytes()[:90])


def _of_16_bits(image: Path, path: Path) -> None:
    """In RGB, as models are shown it, all but its darkest pixels would be white."""
    from PIL import Image

    Image.open(image).convert("I;16").save(path)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_half, r"broken\.png cannot be decoded"),
        (_of_16_bits, r"broken\.png has more than 8 bits per channel"),
        (lambda image, path: path.write_text("<svg/>"), r"broken\.png is not an image that Pillow reads"),
    ],
)
def test_a_corrupt_image_stops_the_run_or_is_counted(
    spoil: Callable, fault: str, tiny_qwen2_vl: Path, tables: dict, tmp_path: Path, digits: dict, scripted: Callable
) -> None:
    broken = tmp_path / "broken.png"
    spoil(digits["held_out"][4].image, broken)
    text = tables["answers"].read_text(encoding="utf-8")
    tables["answers"].write_text(text.replace(str(digits["held_out"][4].image), str(broken)), encoding="utf-8")
    backend = scripted(lambda request: "one")
    with pytest.raises(UniDPOError, match=rf"answers: 1 bad row: row 5 \(index 4\): {fault}.*--skip-bad-rows"):
        evaluate_tables({"tiny": tiny_qwen2_vl}, tables, tmp_path / "work")
    assert not backend.asked
    results = evaluate_tables({"tiny": tiny_qwen2_vl}, tables, tmp_path / "work", Options(skip_bad_rows=True))
    line = results.lines[1]
    assert (line.rows, line.skipped) == (6, 1)
    assert "6 (1 bad left out, own data)" in (tmp_path / "work" / "results.md").read_text(encoding="utf-8")


def test_half_an_unpacked_image_is_unpacked_again(
    nine: dict, tiny_qwen2_vl: Path, lmu_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: Callable
) -> None:
    monkeypatch.setenv("LMUData", str(lmu_data))
    scripted(lambda request: "A")
    config, options = nine_config(nine, tiny_qwen2_vl, ["SEEDBench_IMG"]), Options(allow_modified_data=True)
    evaluate(config, tmp_path, options)
    image = next((tmp_path / "images").glob("SEEDBench_IMG-*/3.png"))
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    evaluate(config, tmp_path, options)
    assert image.read_bytes() == whole


def test_rows_that_score_together_go_together(
    nine: dict, tiny_qwen2_vl: Path, lmu_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: Callable
) -> None:
    monkeypatch.setenv("LMUData", str(lmu_data))
    scripted(lambda request: "Yes")
    config = nine_config(nine, tiny_qwen2_vl, ["MME"])
    results = evaluate(config, tmp_path, Options(allow_modified_data=True, limit=5))
    assert results.lines[0].rows == 4, "the fifth question is half of an image"
    assert not results.failures


def test_a_bad_row_takes_its_rotations_along(
    nine: dict, tiny_qwen2_vl: Path, lmu_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: Callable
) -> None:
    folder = tmp_path / "LMUData"
    folder.mkdir()
    rows = (lmu_data / "MMBench_DEV_EN.tsv").read_text(encoding="utf-8").splitlines()
    cells = rows[7].split("\t")  # the third question, its options rotated
    assert cells[0] == "1000002"
    cells[rows[0].split("\t").index("answer")] = ""
    (folder / "MMBench_DEV_EN.tsv").write_text("\n".join([*rows[:7], "\t".join(cells), *rows[8:]]), encoding="utf-8")
    monkeypatch.setenv("LMUData", str(folder))
    scripted(lambda request: "A")
    options = Options(allow_modified_data=True, skip_bad_rows=True)
    results = evaluate(nine_config(nine, tiny_qwen2_vl, ["MMBench_DEV_EN"]), tmp_path, options)
    assert (results.lines[0].rows, results.lines[0].skipped) == (6, 1)
    assert "2" not in predictions(tmp_path)["tiny_MMBench_DEV_EN.xlsx"]


def test_an_image_too_long_for_the_model_is_found_first(
    tiny_qwen2_vl: Path, tmp_path: Path, scripted: Callable, tsv: Callable
) -> None:
    from PIL import Image

    Image.new("RGB", (2010, 10)).save(tmp_path / "long.png")
    table = tsv(tmp_path / "long.tsv", [{"question": "Which?", "answer": "x", "image_path": "long.png"}])
    scripted(lambda request: "x")
    with pytest.raises(UniDPOError, match=r"row 1 \(index 0\): .*2010 × 10 pixels, one side over 200 times the other"):
        evaluate_tables({"tiny": tiny_qwen2_vl}, {"long": table}, tmp_path / "work")


def test_a_judge_that_does_not_answer_is_an_error(
    tiny_qwen2_vl: Path, tables: dict, tmp_path: Path, scripted: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vlmeval.dataset as kit

    class Silent:
        def working(self) -> bool:
            return False

    monkeypatch.setattr(kit, "build_judge", lambda **named: Silent())
    with pytest.raises(UniDPOError, match="judge gpt-4o-mini does not answer"):
        evaluate_tables({"tiny": tiny_qwen2_vl}, tables, tmp_path, Options(judge="gpt-4o-mini"))


def test_each_bad_input_is_named_before_anything_runs(
    nine: dict, tiny_qwen2_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: Callable, lmu_data: Path
) -> None:
    backend = scripted(lambda request: "A")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("LMUData", str(empty))
    with pytest.raises(UniDPOError, match=r"POPE: looked for POPE.tsv in .*empty.*download http\S+POPE.tsv") as error:
        evaluate(nine_config(nine, tiny_qwen2_vl, ["POPE", "MME"]), tmp_path)
    assert "MME.tsv" in str(error.value), "all that is missing is named at once"
    monkeypatch.setenv("LMUData", str(tmp_path / "nowhere"))
    with pytest.raises(UniDPOError, match=r"LMUData is set to .*nowhere, which is not a folder"):
        evaluate(nine_config(nine, tiny_qwen2_vl, ["POPE"]), tmp_path)
    monkeypatch.setenv("LMUData", str(lmu_data))
    with pytest.raises(UniDPOError, match=re.escape("not the published file")):
        evaluate(nine_config(nine, tiny_qwen2_vl, ["POPE"]), tmp_path)
    assert (lmu_data / "POPE.tsv").is_file()
    assert not backend.asked


def test_answers_are_scored_as_the_texts_they_are(
    kit: str, scripted: Callable, tiny_qwen2_vl: Path, digits: dict[str, list[Digit]], tsv: Callable, tmp_path: Path
) -> None:
    """`= 5` is 5 in VLMEvalKit's normal form, `=7` is not `=5`; and an image in CMYK is given as a data URL."""
    from PIL import Image

    written = io.BytesIO()
    Image.open(digits["held_out"][0].image).convert("CMYK").save(written, "JPEG")
    image = "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode()
    right = {"= 5": ("5", 1), "=7": ("=5", 0), "five\r\nsix": ("five six", 1), "\ud83d": ("x", 0), "007": ("007", 1)}
    rows = [{"index": i, "question": f"Q{i}?", "answer": a, "image": image} for i, (a, _) in enumerate(right.values())]
    said = list(right)
    scripted(lambda request: next(text for i, text in enumerate(said) if f"Q{i}?" in str(request)))
    table = tsv(tmp_path / "t.tsv", rows)
    results = evaluate_tables({"tiny": tiny_qwen2_vl}, {"t": {"path": str(table), "type": "VQA"}}, tmp_path / "w")
    assert results.value("tiny", "t") == pytest.approx(100 * sum(score for _, score in right.values()) / len(right))


def test_what_stands_outside_of_the_reasoning_is_scored(
    kit: str, scripted: Callable, tiny_qwen2_vl: Path, digits: dict[str, list[Digit]], tsv: Callable, tmp_path: Path
) -> None:
    """The first two conclude with B, the right one; the last was cut before it said anything."""
    said = {"<think>A is it?</think>B": 1, "A, it seems</think>\n\nB.": 1, "B": 1, "<think>It is A": 0}
    image = base64.b64encode(digits["held_out"][0].image.read_bytes()).decode()
    rows = [
        {"index": i, "question": f"Q{i}?", "A": "dog", "B": "cat", "answer": "bBBA"[i], "image": image}
        for i in range(len(said))
    ]
    scripted(lambda request: next(text for i, text in enumerate(said) if f"Q{i}?" in str(request)))
    table = tsv(tmp_path / "t.tsv", rows)
    results = evaluate_tables({"tiny": tiny_qwen2_vl}, {"t": {"path": str(table), "type": "MCQ"}}, tmp_path / "w")
    assert results.lines[0].reasoned == 3
    assert "3 of 4 answers reason in <think>…</think>" in (tmp_path / "w" / "results.md").read_text()
    assert results.value("tiny", "t") == pytest.approx(75)
