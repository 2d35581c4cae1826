"""The column `rejected_images`: checked, registered, converted, and never left out in silence."""

import json

import pytest

from uni_dpo.data.checks.check import check_dataset
from uni_dpo.data.convert import convert
from uni_dpo.data.dataset_info import parse_entry
from uni_dpo.data.image_paths import rebase_images
from uni_dpo.data.register import detect_attributes, register_file
from uni_dpo.data.tables.reading import iter_rows
from uni_dpo.errors import UniDPOError

GREY = "images/grey.jpg"


@pytest.fixture
def contrast(folder, good_row):
    """Row 1 has one answer on both sides, row 2 no other image."""
    rows = [good_row(i) | {"rejected_images": [GREY]} for i in range(3)]
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[2]["rejected_images"] = []
    path = folder / "data" / "contrast.json"
    path.write_text(json.dumps(rows))
    return path


def changed(path, row, **values):
    rows = json.loads(path.read_text())
    rows[row] |= values
    path.write_text(json.dumps(rows))


def test_a_good_file_has_no_fault_and_counts_both_sides(contrast, folder) -> None:
    report = check_dataset(str(contrast), media_dir=folder)
    assert report.faultless, report.faults
    assert report.audit.images == 5
    assert report.audit.identical.count == 0


def test_the_same_images_on_both_sides_make_identical_pairs_again(contrast, folder, good_row) -> None:
    changed(contrast, 1, rejected_images=good_row(1)["images"])
    assert check_dataset(str(contrast), media_dir=folder).audit.identical.first == [1]


@pytest.mark.parametrize(
    ("value", "kind", "field"),
    [
        ([GREY, GREY], "image_count", "rejected_images"),
        (["images/none.png"], "image_missing", "rejected_images[0]"),
        ([3], "image_type", "rejected_images[0]"),
    ],
    ids=["count", "missing", "type"],
)
def test_faults_are_named_by_the_column(contrast, folder, value, kind, field) -> None:
    changed(contrast, 0, rejected_images=value)
    report = check_dataset(str(contrast), media_dir=folder)
    found = {(fault.row, fault.kind, fault.field) for fault in report.faults}
    assert (0, kind, field) in found


def test_a_suffix_is_mended_there_too(contrast, folder) -> None:
    changed(contrast, 0, rejected_images="images/grey.png")
    check_dataset(str(contrast), media_dir=folder, fix=folder / "good.jsonl")
    assert next(iter_rows(folder / "good.jsonl"))["rejected_images"] == [GREY]


def test_registering_names_the_column_and_an_entry_without_it_is_a_fault(contrast, folder) -> None:
    assert detect_attributes(contrast)["columns"]["rejected_images"] == "rejected_images"
    register_file("contrast", contrast, folder / "data")
    info = folder / "data" / "dataset_info.json"
    assert check_dataset("contrast", dataset_dir=folder / "data", media_dir=folder).faultless
    entries = json.loads(info.read_text())
    del entries["contrast"]["columns"]["rejected_images"]
    info.write_text(json.dumps(entries))
    report = check_dataset("contrast", dataset_dir=folder / "data", media_dir=folder)
    assert [(fault.kind, fault.field) for fault in report.whole] == [("column_unmapped", "columns.rejected_images")]


@pytest.mark.parametrize("columns", [{"answers": "a", "images": "i"}, {"chosen": "c", "rejected": "r"}])
def test_an_entry_that_cannot_mean_anything_is_refused(columns) -> None:
    attributes = {"file_name": "f.json", "ranking": True, "columns": columns | {"rejected_images": "x"}}
    with pytest.raises(UniDPOError, match="`rejected_images` beside"):
        parse_entry("d", attributes, "data")


@pytest.mark.parametrize("through", ["llamafactory-sharegpt", "llamafactory-openai"])
def test_there_and_back_nothing_changes(contrast, folder, through) -> None:
    assert not convert(contrast, folder / "there.json", to_format=through).losses
    assert not convert(folder / "there.json", folder / "back.json", from_format=through).losses
    original = [{name: value for name, value in row.items() if value != []} for row in iter_rows(contrast)]
    assert list(iter_rows(folder / "back.json")) == original


@pytest.mark.parametrize("target", ["trl", "rlaif-v", "math"])
def test_a_format_without_them_counts_what_is_lost(contrast, folder, target) -> None:
    assert convert(contrast, folder / "other.jsonl", to_format=target).losses["rejected_images"] == 2


def test_their_files_are_copied_and_their_roots_moved(contrast, folder) -> None:
    convert(contrast, folder / "copied.json", image_dir=folder / "copies", image_root=folder)
    copied = [row["rejected_images"][0] for row in iter_rows(folder / "copied.json") if "rejected_images" in row]
    assert len(copied) == 2
    assert all(str(folder / "copies") in path for path in copied)
    changed(contrast, 0, rejected_images=["old/images/grey.jpg"])
    rebase_images(contrast, [folder / "images"], anchor="images", output_file=folder / "moved.json")
    assert next(iter_rows(folder / "moved.json"))["rejected_images"] == [str(folder / GREY)]
