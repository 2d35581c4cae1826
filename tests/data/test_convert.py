import json
import os
from pathlib import Path

import datasets
import pytest
from PIL import Image

from uni_dpo.data.calibrate import calibrate
from uni_dpo.data.convert import convert, parse_columns
from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.tables.reading import iter_rows
from uni_dpo.errors import UniDPOError


@pytest.fixture
def pairs(folder, good_row) -> Path:
    rows = [good_row(i) for i in range(5)] + [good_row(5, instruction="No image?", images=...)]
    rows[2]["images"] = ["images/grey.jpg"]
    rows[3] |= {"system": "Be brief.", "history": [["<image>Hello?", "Hello."]], "instruction": "And?"}
    path = folder / "pairs.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("through", ["llamafactory-sharegpt", "llamafactory-openai", "trl"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_there_and_back_through_files_nothing_changes(pairs, folder, through, suffix) -> None:
    there, back = folder / f"there{suffix}", folder / f"back{suffix}"
    first = convert(pairs, there, to_format=through)
    second = convert(there, back, from_format=through)
    assert not first.losses
    assert not second.losses
    original = list(iter_rows(pairs))
    rows = [{key: value for key, value in row.items() if value is not None} for row in iter_rows(back)]
    assert rows == original
    assert (first.read, first.written) == (6, 6)


def test_trl_s_folder_is_a_dataset_dict_of_real_images(pairs, folder) -> None:
    convert(pairs, folder / "trl", to_format="trl", image_dir=folder / "copies", image_root=folder)
    saved = datasets.load_from_disk(folder / "trl")
    assert list(saved) == ["train"]
    assert saved["train"][2]["images"][0].size == (256, 256)
    assert saved["train"][0]["prompt"][0]["content"][1]["text"] == "What is in picture 0?"
    result = convert(folder / "trl", folder / "back.jsonl", from_format="trl", image_dir=folder / "again")
    assert result.written == 6
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    with pytest.raises(UniDPOError, match="is there already"):
        convert(pairs, folder / "trl", to_format="trl")


def test_images_are_copied_once_under_names_of_our_own(pairs, folder) -> None:
    convert(pairs, folder / "copied.json", image_dir=folder / "copies", image_root=folder)
    files = sorted(path for path in (folder / "copies").rglob("*") if path.is_file())
    assert [path.suffix for path in files].count(".jpg") == 1
    assert len(files) == 2
    named = {image for row in iter_rows(folder / "copied.json") for image in row.get("images", [])}
    assert named == set(map(str, files))


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "images/../../secret.png"])
def test_no_row_reads_or_writes_outside_its_folders(folder, good_row, path) -> None:
    secret = folder.parent / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    source = folder / "in.json"
    source.write_text(json.dumps([good_row(images=[path])]))
    with pytest.raises(PreferenceDataError, match=r"in\.json, row 0 \(line 1\), images: .* leaves "):
        convert(source, folder / "out.json", image_dir=folder / "copies", image_root=folder)
    assert not (folder / "out.json").exists()
    encoded = {"bytes": secret.read_bytes(), "path": f"../../{path}"}
    datasets.Dataset.from_list([{"image": encoded, "question": "q", "chosen": "a", "rejected": "b"}]).to_parquet(
        folder / "zip_slip.parquet"
    )
    convert(folder / "zip_slip.parquet", folder / "safe.json", from_format="rlaif-v", image_dir=folder / "copies")
    (row,) = iter_rows(folder / "safe.json")
    assert Path(row["images"][0]).is_relative_to(folder / "copies")


def test_all_rows_that_do_not_fit_are_named_or_skipped(folder, good_row) -> None:
    source = folder / "in.jsonl"
    rows = [good_row(0), good_row(1, chosen=None), good_row(2), good_row(3, instruction=...)]
    source.write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n")
    with pytest.raises(PreferenceDataError) as caught:
        convert(source, folder / "out.json")
    assert [fault.row for fault in caught.value.faults] == [1, 3, 4]
    assert str(caught.value).endswith("\nnothing is written; --skip-broken leaves these rows out")
    assert not (folder / "out.json").exists()
    result = convert(source, folder / "out.json", skip_broken=True)
    assert (result.read, result.written, len(result.skipped)) == (5, 2, 3)
    assert "skipped in all: 3" in result.lines()


def test_encoded_images_do_not_fit_into_json(folder) -> None:
    row = {"image": {"bytes": (folder / "images/red.png").read_bytes(), "path": None}, "question": "q"}
    datasets.Dataset.from_list([row | {"chosen": "a", "rejected": "b"}]).to_parquet(folder / "in.parquet")
    with pytest.raises(PreferenceDataError, match="write Parquet, or copy the images to a folder"):
        convert(folder / "in.parquet", folder / "out.json", from_format="rlaif-v")
    convert(folder / "in.parquet", folder / "out.parquet", from_format="rlaif-v")
    (written,) = iter_rows(folder / "out.parquet")
    assert written["images"][0]["bytes"] == row["image"]["bytes"]


def test_losses_are_reported(pairs, folder) -> None:
    result = convert(pairs, folder / "out.jsonl", to_format="trl-plain")
    assert "lost: system: 1" in result.lines()
    assert "lost: history: 1" in result.lines()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_format": "stance", "to_format": "mm-rlhf"}, "mm-rlhf is not written"),
        ({"from_format": "llava-sft", "to_format": "trl"}, "fine-tuning data goes to and from llamafactory or"),
        ({"from_format": "llava-sft", "to_format": "llamafactory-openai"}, "llamafactory-sharegpt only"),
        ({"from_format": "nothing"}, "no format 'nothing'"),
    ],
)
def test_ways_that_do_not_exist(pairs, folder, options, message) -> None:
    with pytest.raises(UniDPOError, match=message):
        convert(pairs, folder / "out.json", **options)


def test_the_input_is_never_written_over(pairs) -> None:
    before = pairs.read_bytes()
    with pytest.raises(PreferenceDataError, match="is what is read"):
        convert(pairs, pairs)
    assert pairs.read_bytes() == before


@pytest.mark.parametrize("form", ["auto", "llamafactory"])
def test_other_column_names_are_found(folder, form) -> None:
    row = {"question": "Why?", "chosen": "So.", "rejected": "No.", "chosen_score": 4, "rejected_score": 2.5}
    (folder / "in.jsonl").write_text(json.dumps(row))
    assert not convert(folder / "in.jsonl", folder / "out.jsonl", from_format=form).losses
    expected = {"instruction": "Why?", "chosen": "So.", "rejected": "No.", "score_chosen": 4.0, "score_rejected": 2.5}
    assert list(iter_rows(folder / "out.jsonl")) == [expected]


@pytest.mark.parametrize("path", ["pipe.png", "/dev/zero"])
def test_what_is_no_file_is_named_and_not_read(folder, good_row, path: str) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "in.json").write_text(json.dumps([good_row(0, images=[path])]))
    with pytest.raises(UniDPOError, match=r"row 0 .*images: .*is a (named pipe|pipe or device|device)|leaves"):
        convert(folder / "in.json", folder / "out.jsonl", image_dir=folder / "copies", image_root=folder)
    with pytest.raises(UniDPOError, match="row 0"):
        convert(folder / "in.json", folder / "out.jsonl", image_dir=folder / "copies")


def saved_splits(folder: Path) -> Path:
    def table(kind: str, count: int) -> datasets.Dataset:
        rows = [{"question": f"{kind} {n}?", "chosen": "a", "rejected": "b", "ds_name": "x"} for n in range(count)]
        return datasets.Dataset.from_list([row | {"image": "images/red.png"} for row in rows])

    datasets.DatasetDict(train=table("train", 3), test=table("test", 2)).save_to_disk(folder / "saved")
    return folder / "saved"


def test_splits_stay_apart(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    source = saved_splits(folder)
    result = convert(source, folder / "out", from_format="vqa-rad", to_format="trl")
    written = datasets.load_from_disk(folder / "out")
    assert {name: len(rows) for name, rows in written.items()} == {"train": 3, "test": 2}
    assert written["test"][1]["prompt"][0]["content"][-1]["text"] == "test 1?"
    assert written["test"][1]["images"][0].size == Image.open(folder / "images/red.png").size
    assert "lost: column ds_name: 5" in result.lines()
    with pytest.raises(PreferenceDataError, match=r"several splits \(train, test\)"):
        convert(source, folder / "out.jsonl", from_format="vqa-rad")
    assert convert(source, folder / "out.jsonl", from_format="vqa-rad", split="test").written == 2
    with pytest.raises(PreferenceDataError, match="no split 'dev'; it has train, test"):
        convert(source, folder / "dev.jsonl", from_format="vqa-rad", split="dev")


def test_files_named_after_splits_are_splits(folder, good_row) -> None:
    (folder / "parts").mkdir()
    for name, count in (("train-00000-of-00002", 2), ("train-00001-of-00002", 1), ("test-00000-of-00001", 2)):
        (folder / "parts" / f"{name}.jsonl").write_text("\n".join(json.dumps(good_row(n)) for n in range(count)))
    with pytest.raises(PreferenceDataError, match=r"several splits \(test, train\)"):
        convert(folder / "parts", folder / "out.jsonl")
    assert convert(folder / "parts", folder / "out.jsonl", split="train").written == 3
    with pytest.raises(PreferenceDataError, match="several splits"):
        calibrate(folder / "parts", folder / "calibrated.jsonl")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("http://127.0.0.1:9/x.png", "the address"),
        ("secret.txt", "not an image"),
        ("../secret.txt", "no file|not an image"),
    ],
)
def test_a_saved_folder_holds_images_and_nothing_else(folder, good_row, image, words) -> None:
    for place in (folder, folder.parent):
        (place / "secret.txt").write_text("secret")
    (folder / "in.json").write_text(json.dumps([good_row(0, images=[image])]))
    with pytest.raises(PreferenceDataError, match=words):
        convert(folder / "in.json", folder / "out", to_format="trl")
    assert not (folder / "out").exists()


def test_images_of_a_saved_folder_start_beside_the_input(folder, good_row) -> None:
    (folder / "in.json").write_text(json.dumps([good_row(0, images=["images/red.png"])]))
    convert(folder / "in.json", folder / "out", to_format="trl")
    (row,) = datasets.load_from_disk(folder / "out")["train"].cast_column("images", [datasets.Image(decode=False)])
    assert row["images"][0]["bytes"] == (folder / "images/red.png").read_bytes()


def test_a_field_has_one_column() -> None:
    assert parse_columns(["chosen=good", "rejected=bad"]) == {"chosen": "good", "rejected": "bad"}
    with pytest.raises(UniDPOError, match="chosen is taken from good and from better"):
        parse_columns(["chosen=good", "chosen=better"])


def test_columns_of_other_names_are_mapped(folder) -> None:
    row = {"q": "Why?", "good": "So.", "bad": "No.", "note": "kept apart"}
    (folder / "in.jsonl").write_text(json.dumps(row))
    columns = {"instruction": "q", "chosen": "good", "rejected": "bad"}
    result = convert(folder / "in.jsonl", folder / "out.jsonl", columns=columns)
    assert list(iter_rows(folder / "out.jsonl")) == [{"instruction": "Why?", "chosen": "So.", "rejected": "No."}]
    assert "lost: column note: 1" in result.lines()
    with pytest.raises(PreferenceDataError, match="no column 'score' \\(it has q, good, bad, note\\); check --map"):
        convert(folder / "in.jsonl", folder / "again.jsonl", columns=columns | {"score_chosen": "score"})
    assert not (folder / "again.jsonl").exists()
    with pytest.raises(UniDPOError, match="write FIELD=COLUMN"):
        parse_columns(["chosen"])


@pytest.mark.parametrize("name", ["rlaif-v-text", "vlfeedback", "mm-rlhf", "llava", "math", "ultrafeedback", "rlaif-v"])
def test_auto_finds_the_format_by_the_columns(folder, name) -> None:
    source = Path(__file__).parent / "formats" / "fixtures" / f"{name}.json"
    found = convert(source, folder / "auto.jsonl", from_format="auto")
    convert(source, folder / "named.jsonl", from_format=name)
    assert (folder / "auto.jsonl").read_bytes() == (folder / "named.jsonl").read_bytes()
    assert found.detected


def test_a_layout_that_is_none_is_answered_with_the_ways_to_name_one(folder) -> None:
    (folder / "odd.json").write_text(json.dumps([{"data": [1]}]))
    with pytest.raises(PreferenceDataError, match=r"`uni-dpo data formats` shows what is read, --format names one"):
        convert(folder / "odd.json", folder / "out.json", from_format="auto")


def test_auto_puts_a_placeholder_where_a_row_of_texts_has_an_image_and_none(folder) -> None:
    row = {"image": "a.png", "prompt": "q", "chosen": "a", "rejected": "b"}
    (folder / "bare.json").write_text(json.dumps([row]))
    convert(folder / "bare.json", folder / "out.json", from_format="auto")
    assert json.loads((folder / "out.json").read_text())[0]["instruction"] == "<image>q"


def test_images_of_fine_tuning_data_are_watched_and_copied_on_the_way_back_too(folder) -> None:
    turns = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]
    source, output = folder / "sft.json", folder / "out" / "llava.json"
    formats = {"from_format": "llamafactory-sharegpt", "to_format": "llava-sft"}
    source.write_text(json.dumps([{"images": "images/red.png", "conversations": turns}]))
    convert(source, output, **formats, image_dir=folder / "copies")
    assert Path(next(iter_rows(output))["image"]).is_relative_to(folder / "copies")
    source.write_text(json.dumps([{"images": "../red.png", "conversations": turns}]))
    with pytest.raises(PreferenceDataError, match="leaves"):
        convert(source, output, **formats, image_root=folder / "images")


def test_columns_that_fine_tuning_data_has_no_place_for_are_counted(folder) -> None:
    source = folder / "textvqa.json"
    source.write_text(json.dumps([{"question": "q?", "answers": ["a", "a"], "ocr_tokens": ["STOP"], "set_name": ""}]))
    assert convert(source, folder / "o.json", from_format="textvqa").losses["column ocr_tokens"] == 1


def test_a_lost_video_leaves_no_mark_in_the_text(folder, good_row) -> None:
    source = folder / "videos.json"
    source.write_text(json.dumps([good_row(instruction="<video>What?", images=..., videos=["v.mp4"])]))
    for name in ("trl-text", "rlaif-v", "llava"):
        assert convert(source, folder / f"{name}.json", to_format=name).losses["videos"] == 1
        assert "<video>" not in (folder / f"{name}.json").read_text()
    convert(source, folder / "kept.json", to_format="llamafactory-sharegpt")
    assert "<video>" in (folder / "kept.json").read_text()


def test_values_that_a_saved_folder_cannot_hold_are_named_by_its_own_name(folder, good_row) -> None:
    source = folder / "ids.json"
    source.write_text(json.dumps([good_row(id=1, images=..., instruction="q"), good_row(images=..., instruction="q")]))
    with pytest.raises(PreferenceDataError, match=r"saved, column 'id': .*; give them one type"):
        convert(source, folder / "saved", to_format="trl")
