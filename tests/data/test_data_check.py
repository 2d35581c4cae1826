import io
import json
import math
import subprocess
import sys

import pytest
from PIL import Image

from uni_dpo.data.checks.check import check_dataset
from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.tables.reading import iter_rows
from uni_dpo.errors import UniDPOError
from uni_dpo.report.check import sections, tables, write_check_page


@pytest.fixture
def mixed(folder, good_row):
    """Rows 2 and 5 are at fault, row 4 repeats row 3, row 6 contradicts it."""
    rows = [good_row(i) for i in range(7)]
    rows[2]["score_chosen"] = math.nan
    rows[4] = good_row(3)
    rows[5] |= {"images": ["images/none.png"], "chosen": ""}
    rows[6] = good_row(3) | {"chosen": rows[3]["rejected"], "rejected": rows[3]["chosen"]}
    path = folder / "data" / "mixed.json"
    path.write_text(json.dumps(rows))
    return path


def test_one_pass_finds_faults_and_says_what_the_rest_is_like(mixed, folder) -> None:
    report = check_dataset(str(mixed), media_dir=folder)
    assert (report.rows, report.usable, report.faultless) == (7, 5, False)
    assert [(f.row, f.kind) for f in report.faults] == [(2, "score_nan"), (5, "answer_empty"), (5, "image_missing")]
    assert report.audit.pairs == 5
    assert report.audit.duplicates.examples == [(3, 4)]
    assert report.audit.contradictions.examples == [(3, 6)]


def test_fix_sorts_the_rows_and_gives_the_reasons(mixed, folder) -> None:
    before = mixed.read_bytes()
    report = check_dataset(str(mixed), media_dir=folder, fix=folder / "good.jsonl")
    assert report.fixed == (folder / "good.jsonl", folder / "good.rejected.jsonl")
    original = json.loads(before)
    assert list(iter_rows(folder / "good.jsonl")) == [original[i] for i in (0, 1, 3, 4, 6)]
    rejected = list(iter_rows(folder / "good.rejected.jsonl"))
    assert [row["row"] for row in rejected] == [2, 5]
    assert rejected[1]["data"] == original[5]
    assert [reason.split(":")[0] for reason in rejected[1]["reasons"]] == ["chosen", "images[0]"]
    assert mixed.read_bytes() == before
    assert check_dataset(str(folder / "good.jsonl"), media_dir=folder).faultless
    with pytest.raises(PreferenceDataError, match="is what is read"):
        check_dataset(str(mixed), fix=mixed)
    before = (folder / "bad.rejected.jsonl").write_text(json.dumps(original[0]))
    with pytest.raises(PreferenceDataError, match="is what is read"):
        check_dataset(str(folder / "bad.rejected.jsonl"), media_dir=folder, fix=folder / "bad.jsonl")
    assert (folder / "bad.rejected.jsonl").stat().st_size == before


def test_broken_text_goes_to_the_second_file_and_not_to_the_first(folder) -> None:
    path = folder / "broken.jsonl"
    row = b'{"instruction": "q", "chosen": "%s", "rejected": "b", "score_chosen": 2, "score_rejected": 1}\n'
    path.write_bytes(row % b"a" + row % b"\xff\xfe" + b"{oops\n" + row % b"c")
    report = check_dataset(str(path), fix=folder / "good.jsonl")
    assert report.fault_counts == {"text_encoding": 1, "row_unreadable": 1}
    assert [row["chosen"] for row in iter_rows(folder / "good.jsonl")] == ["a", "c"]
    assert [row["row"] for row in iter_rows(folder / "good.rejected.jsonl")] == [1, 2]


def test_a_name_in_dataset_info_is_read_as_it_says(folder, good_row, register) -> None:
    row = good_row()
    row["better"] = row.pop("chosen")
    columns = {"prompt": "instruction", "chosen": "better", "rejected": "rejected", "images": "images"}
    register("named", [row], columns=columns)
    assert check_dataset("named", dataset_dir=folder / "data", media_dir=folder).faultless
    with pytest.raises(PreferenceDataError, match="no dataset 'nomed'; did you mean named"):
        check_dataset("nomed", dataset_dir=folder / "data")
    with pytest.raises(PreferenceDataError, match="no such file; to name a dataset"):
        check_dataset("nomed")


def test_images_start_beside_a_file_and_in_dataset_dir_for_a_name(folder, good_row, register) -> None:
    (folder / "d.json").write_text(json.dumps([good_row()]))
    register("other", [good_row()])
    assert check_dataset(str(folder / "d.json"), dataset_dir=folder / "data").faultless
    assert check_dataset("other", dataset_dir=folder / "data").fault_counts == {"image_missing": 1}


def test_faults_of_the_whole_dataset(folder, good_row, register) -> None:
    path = folder / "data" / "swapped.json"
    path.write_text(json.dumps([good_row(i, score_chosen=0.0, score_rejected=4.0) for i in range(3)]), "utf-8-sig")
    report = check_dataset(str(path), media_dir=folder)
    assert report.fault_counts == {"scores_swapped": 1}
    assert any("byte-order mark" in line for line in report.warnings)
    assert any("no chosen score reaches tau_good = 2.5 (the highest is 0)" in line for line in report.warnings)


def test_reading_that_stops_is_said_and_keeps_what_was_read(folder, good_row) -> None:
    path = folder / "cut.json"
    path.write_text(json.dumps([good_row(0), good_row(1)])[:-9])
    report = check_dataset(str(path), media_dir=folder)
    assert report.rows == 1
    assert "row 1" in report.stopped
    assert not report.faultless


def test_a_number_that_is_not_known_is_null_in_json(folder) -> None:
    (folder / "d.json").write_text(json.dumps([{"instruction": "q", "chosen": "a", "rejected": "b"}]))
    report = check_dataset(str(folder / "d.json"), scores_required=False)
    as_json = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert (report.faultless, as_json["audit"]["margins"]["mean"]) == (True, None)


def test_the_report_as_tables_page_and_json(mixed, folder) -> None:
    report = check_dataset(str(mixed), media_dir=folder)
    titles = [title for title, _, _ in sections(report)]
    assert titles == [str(mixed), "Faults", "The first faults", "Pairs", "Distributions", "Scores"]
    assert len(list(tables(report))) == len(titles)
    (folder / "page.html").touch()
    write_check_page(folder / "page.html", report)
    html = write_check_page(folder / "page.html", report).read_text()
    before = mixed.read_bytes()
    with pytest.raises(UniDPOError, match="is there and is no page; name another file"):
        write_check_page(mixed, report)
    assert mixed.read_bytes() == before
    assert html.count('"edges":') == 2
    assert "images/none.png" in html
    as_json = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert as_json["faults"][0] == {
        "kind": "score_nan", "file": str(mixed), "row": 2, "line": 1, "id": "r2",
        "field": "score_chosen", "found": "NaN",
        "advice": "give a finite number, or remove the row",
    }  # fmt: skip
    assert as_json["audit"]["duplicates"] == {"count": 1, "examples": [[3, 4]]}


def test_rows_of_a_folder_are_named_with_their_file(folder, good_row) -> None:
    (folder / "many").mkdir()
    for name, score in (("a.json", 4), ("b.json", None)):
        (folder / "many" / name).write_text(json.dumps([good_row(score_chosen=score)]))
    faults = next(
        rows for title, _, rows in sections(check_dataset(str(folder / "many"), media_dir=folder)) if "first" in title
    )
    assert faults[0][2].startswith(f"{folder / 'many' / 'b.json'}, id 'r0', score_chosen: null")


def test_rejected_images_beside_ranked_answers_are_a_fault(folder, good_row) -> None:
    row = good_row(chosen=..., rejected=..., answers=["a", "b"], scores=[1, 2], rejected_images=["images/red.png"])
    (folder / "ranked.json").write_text(json.dumps([row]))
    report = check_dataset(str(folder / "ranked.json"))
    assert [fault.kind for fault in report.whole] == ["column_unmapped"]


def test_what_a_row_says_is_text_on_the_page(folder, good_row) -> None:
    path = folder / "d.json"
    path.write_text(
        json.dumps([good_row(images=["<script>alert(1)</script>.png"]), good_row(score_chosen="[red]x[/red]")])
    )
    report = check_dataset(str(path))
    assert "<script>alert" not in write_check_page(folder / "page.html", report).read_text()
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    for table in tables(report):
        console.print(table)
    assert "[red]x[/red]" in console.export_text()


def test_a_hundred_thousand_rows_are_checked_in_flat_memory(folder, good_row) -> None:
    path = folder / "many.jsonl"
    with path.open("w") as out:
        for i in range(100_000):
            out.write(json.dumps(good_row(i)) + "\n")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from uni_dpo.data.checks.check import check_dataset\n"
        "report = check_dataset(sys.argv[1], media_dir=sys.argv[2])\n"
        "assert report.usable == 100_000\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(status.partition('VmHWM:')[2].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", program, path, folder], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200_000  # KiB


def test_a_check_judges_as_the_training_does(folder, good_row, register) -> None:
    name = register("d", [good_row(images=["../images/red.png"])], ranking=False)
    assert check_dataset(name, dataset_dir=folder / "data").fault_counts == {"not_ranking": 1}
    (folder / "empty.json").write_text("[]")
    register("empty", [])
    assert check_dataset("empty", dataset_dir=folder / "data").fault_counts == {"no_rows": 1}


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"a": (5, 1), "b": (5, 2)}, ""),
        ({"a": (0.9, 0.2), "b": (90, 20)}, "judge 'a' between 0.2 and 0.9 and 'b' between 20 and 90"),
        ({"": (5, 1)}, ""),
    ],
)
def test_the_judge_whose_scale_differs_is_named(folder, good_row, scores, expected) -> None:
    rows = [
        good_row(i, judge=name or ..., score_chosen=high, score_rejected=low)
        for name, (high, low) in scores.items()
        for i in range(12)
    ]
    (folder / "d.json").write_text(json.dumps(rows))
    found = [line for line in check_dataset(str(folder / "d.json")).warnings if "two scales" in line]
    assert len(found) == bool(expected)
    assert expected in "".join(found)


@pytest.mark.parametrize(
    ("lower", "higher", "top"),
    [((0.75, 0.1), (9, 4), "1"), ((5, 1), (90, 30), "5"), ((9, 2), (99, 40), "10"), ((5, 1), (10, 4), ""),
     ((1, 0), (10, 0), ""), ((10, 4), (24, 1), "")],
)  # fmt: skip
def test_two_scales_are_seen_without_a_judge(folder, good_row, lower, higher, top) -> None:
    rows = [good_row(i, score_chosen=high, score_rejected=low) for high, low in (lower, higher) for i in range(10)]
    (folder / "d.json").write_text(json.dumps(rows))
    found = [line for line in check_dataset(str(folder / "d.json")).warnings if "two scales" in line]
    assert len(found) == bool(top)
    assert not top or f"50% of the pairs have scores up to {top}, the others far above" in found[0]


@pytest.mark.parametrize(("margin", "warned"), [(40, "w_qual is 1 "), (2, ""), (0.01, "w_qual is 0.5 ")])
def test_weights_that_are_all_alike_are_a_warning(folder, good_row, margin, warned) -> None:
    """σ(0.7 · 40) = 1 − 7e-13, σ(1.4) = 0.80, σ(0.007) = 0.502."""
    rows = [good_row(i, score_chosen=3 + margin, score_rejected=3) for i in range(20)]
    (folder / "d.json").write_text(json.dumps(rows))
    found = "".join(line for line in check_dataset(str(folder / "d.json")).warnings if "w_qual" in line)
    assert found.startswith(warned)
    assert bool(found) == bool(warned)


def test_fix_repairs_what_has_one_right_value_and_says_so(folder, good_row) -> None:
    Image.new("RGB", (20, 20)).save(folder / "images" / "UPPER.JPG")
    rows = [
        good_row(0),
        good_row(1, score_chosen=" 4.50 ", score_rejected="-1"),
        good_row(2, images="images/red.png"),
        good_row(3, images=["images/UPPER.jpg"]),
        good_row(4, score_chosen="4,5"),
        good_row(5, score_chosen="nan"),
        good_row(6, score_chosen="3", chosen=""),
        good_row(7, images=["../images/UPPER.jpg"]),
        good_row(8, instruction="Which?"),
        good_row(9, instruction="Which?", history=[["Hm?", "Hm."]]),
    ]
    (folder / "d.json").write_text(json.dumps(rows))
    report = check_dataset(str(folder / "d.json"), media_dir=folder, fix=folder / "good.json")
    assert report.repairs == {
        "score_chosen: text to number": 1,
        "score_rejected: text to number": 1,
        "images: text to list": 1,
        "images: suffix of the file": 1,
        "<image> put in front of the question": 1,
    }
    rows[1] |= {"score_chosen": 4.5, "score_rejected": -1}
    rows[2]["images"] = ["images/red.png"]
    rows[3]["images"] = ["images/UPPER.JPG"]
    rows[8]["instruction"] = "<image>Which?"
    assert json.loads((folder / "good.json").read_text()) == [*rows[:4], rows[8]]
    assert [row["row"] for row in iter_rows(folder / "good.rejected.jsonl")] == [4, 5, 6, 7, 9]
    assert check_dataset(str(folder / "good.json"), media_dir=folder).faultless


def test_tables_of_eighty_columns_keep_numbers_and_words_whole(folder, good_row) -> None:
    from rich.console import Console

    low = {"score_rejected": -2e30}
    rows = [good_row(i, chosen="words" * (3_000 + i), score_chosen=-1.23456e-5 * i, **low) for i in range(9)]
    rows.append(good_row(9, images=["images/none.png"], id="a-long-name-of-a-row"))
    (folder / "d.json").write_text(json.dumps(rows))
    report = check_dataset(str(folder / "d.json"))
    stream = io.StringIO()
    console = Console(width=80, file=stream, markup=False)
    for table in tables(report):
        console.print(table)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for whole in ("-4.9e-05", "-2.0e+30", "15020", "rejected length", "w_qual, η = 0.7", "'a-long-name-of-a-row',"):
        assert whole in text


def test_nearly_equal_scores_have_a_figure(folder, good_row) -> None:
    """Between 2^60 and its neighbour 2^60 + 256 are no 20 numbers."""
    rows = [good_row(i, score_chosen=2.0**60 + 256 * i, score_rejected=2.0**60) for i in range(2)]
    (folder / "d.json").write_text(json.dumps(rows))
    edges, chosen, rejected = check_dataset(str(folder / "d.json")).audit.score_histograms
    assert (edges, chosen, rejected) == ([2.0**60, 2.0**60 + 256], [2], [2])


def test_fix_writes_paths_that_lead_to_the_images_from_there(folder, good_row) -> None:
    path = folder / "pairs.json"
    path.write_text(json.dumps([good_row(), good_row(1, score_chosen=math.nan)]))
    good = folder / "elsewhere" / "good.jsonl"
    check_dataset(str(path), fix=good)
    assert check_dataset(str(good)).faultless
    assert json.loads((good.parent / "good.rejected.jsonl").read_text(), parse_constant=pytest.fail)["row"] == 1
    led = good.read_text()
    check_dataset(str(path), check_images=False, fix=good)
    assert good.read_text() == led
    check_dataset(str(path), media_dir=folder, fix=good)
    assert next(iter_rows(good))["images"] == ["images/red.png"]
