import http.server
import importlib.util
import subprocess
import sys
import threading
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from uni_dpo.data.convert import convert
from uni_dpo.data.tables.reading import iter_rows
from uni_dpo.data.vqa_rad import download_file, load_and_process_vqa_dpo, save_dataset
from uni_dpo.errors import UniDPOError

BODY = bytes(range(256)) * 1000


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `BODY`; `/cut` breaks off half-way at the first call, `/plain` knows no ranges.

    `version` is that of the file, `heeds` whether If-Range is, `span` the Content-Range where it is a lie.
    """

    requests: list[tuple[str, str | None]] = []  # noqa: RUF012
    version: str | None = '"one"'
    body = BODY
    heeds = True
    span: str | None = None

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.requests.append((self.path, wanted))
        if self.heeds and self.headers.get("If-Range") != self.version:
            wanted = None
        if self.path == "/missing":
            self.send_error(404)
            return
        start = int(wanted.split("=")[1].rstrip("-")) if wanted and self.path != "/plain" else 0
        if start >= len(self.body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.body) - start))
        if start:
            self.send_header("Content-Range", self.span or f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        if self.version:
            self.send_header("ETag", self.version)
        self.end_headers()
        cut = self.path == "/cut" and not start and self.body == BODY
        self.wfile.write(self.body[start : len(BODY) // 2] if cut else self.body[start:])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch):
    Server.requests.clear()
    for name, value in (("version", '"one"'), ("body", BODY), ("heeds", True), ("span", None)):
        monkeypatch.setattr(Server, name, value)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_file_is_fetched_whole(address, tmp_path) -> None:
    download_file(f"{address}/file", tmp_path / "new" / "file.csv")
    assert (tmp_path / "new" / "file.csv").read_bytes() == BODY
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.csv"]


def test_a_download_that_was_cut_off_goes_on(address, tmp_path) -> None:
    target = tmp_path / "file.csv"
    target.write_text("what was there before")
    with pytest.raises(UniDPOError, match="call again to resume"):
        download_file(f"{address}/cut", target)
    assert target.read_text() == "what was there before"
    download_file(f"{address}/cut", target)
    assert target.read_bytes() == BODY
    assert Server.requests == [("/cut", None), ("/cut", f"bytes={len(BODY) // 2}-")]
    assert [path.name for path in tmp_path.iterdir()] == ["file.csv"]


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("version", ['"two"', 'W/"weak"', None])
def test_another_version_is_fetched_whole(address, tmp_path, heeds: bool, version: str | None) -> None:
    with pytest.raises(UniDPOError):
        download_file(f"{address}/cut", tmp_path / "f")
    Server.body, Server.version, Server.heeds = b"another" * 50_000, version, heeds
    if version is None and not heeds:  # nothing tells that version from the first one
        Server.body = BODY
    download_file(f"{address}/cut", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == Server.body


def test_a_part_of_unknown_version_is_not_resumed(address, tmp_path) -> None:
    Server.version = None
    with pytest.raises(UniDPOError):
        download_file(f"{address}/cut", tmp_path / "f")
    download_file(f"{address}/file", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert [wanted for _, wanted in Server.requests] == [None, None]


@pytest.mark.parametrize("span", ["bytes 7-255999/256000", "bytes */256000", "nonsense"])
def test_another_range_than_was_asked_for_is_not_taken(address, tmp_path, span: str) -> None:
    with pytest.raises(UniDPOError):
        download_file(f"{address}/cut", tmp_path / "f")
    Server.span = span
    with pytest.raises(UniDPOError):
        download_file(f"{address}/cut", tmp_path / "f")
    assert not (tmp_path / "f").exists()
    assert Server.requests[-1] == ("/cut", None)


@pytest.mark.parametrize("kept", [1000, len(BODY) + 5])
def test_a_part_that_does_not_fit_is_fetched_anew(address, tmp_path, kept) -> None:
    (tmp_path / "f.part").write_bytes(b"x" * kept)
    download_file(f"{address}/{'plain' if kept == 1000 else 'file'}", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


def test_what_the_server_refuses_is_an_error(address, tmp_path) -> None:
    with pytest.raises(UniDPOError, match="/missing: the server answered 404"):
        download_file(f"{address}/missing", tmp_path / "f")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UniDPOError, match="addresses of type 'ftp' are not fetched"):
        download_file("ftp://example.org/f", tmp_path / "f")
    with pytest.raises(UniDPOError, match="cannot be fetched"):
        download_file("http://127.0.0.1:9/f", tmp_path / "f")


@pytest.mark.parametrize("form", [str, Path.as_uri])
def test_local_files_are_copied(tmp_path, form) -> None:
    source = tmp_path / "a file.csv"
    source.write_bytes(BODY)
    download_file(form(source), tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_bytes() == BODY
    with pytest.raises(UniDPOError, match="cannot be read"):
        download_file(form(tmp_path / "none"), tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_bytes() == BODY


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (9, 7), (shade, 0, 255 - shade))


def frame(name: str, rows: int, index) -> pd.DataFrame:
    columns = {
        "image": [picture(10 * row) for row in range(rows)],
        "question": [f"{name} question {row}?" for row in range(rows)],
        "answer": [f"{name} answer {row}" for row in range(rows)],
    }
    return pd.DataFrame(columns, index=index)


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "rejected.csv"
    names = [f"train rejected {row}" for row in range(7)] + [f"test rejected {row}" for row in range(5)]
    names[3] = "no"
    names[4] = "NA"
    pd.DataFrame({"rejected": names}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("train_index", "test_index"),
    [
        (range(7), range(5)),
        (range(100, 107), range(100, 105)),
        (range(7), range(7, 12)),
        (list("gfedcba"), [9, 9, 9, 1, 0]),
    ],
)
def test_rows_are_aligned_by_position_whatever_the_index(csv, train_index, test_index) -> None:
    train, test = frame("train", 7, train_index), frame("test", 5, test_index)
    before = [table.drop(columns="image").copy() for table in (train, test)]
    pairs = load_and_process_vqa_dpo(csv, train, test)
    for rows in pairs.values():
        assert rows.column_names == ["image", "question", "chosen", "rejected"]
    expected = ["train rejected 0", "train rejected 1", "train rejected 2", "no", "NA"]
    assert pairs["train"]["rejected"][:] == [*expected, "train rejected 5", "train rejected 6"]
    assert pairs["test"]["rejected"][:] == [f"test rejected {row}" for row in range(5)]
    assert pairs["test"]["chosen"][:] == [f"test answer {row}" for row in range(5)]
    assert isinstance(pairs["train"].features["image"], datasets.Image)
    assert np.array_equal(np.asarray(pairs["test"][3]["image"]), np.asarray(picture(30)))
    for table, copy in zip((train, test), before, strict=True):
        assert list(table.columns) == ["image", "question", "answer"]
        pd.testing.assert_frame_equal(table.drop(columns="image"), copy)


def test_what_does_not_fit_is_an_error(csv, tmp_path) -> None:
    train, test = frame("train", 7, range(7)), frame("test", 5, range(5))
    with pytest.raises(UniDPOError, match="12 rejected answers for 7 training and 4 test rows"):
        load_and_process_vqa_dpo(csv, train, test.head(4))
    with pytest.raises(UniDPOError, match="train_df: no column 'answer'"):
        load_and_process_vqa_dpo(csv, train.drop(columns="answer"), test)
    gap = train.assign(answer=["x", float("nan"), *["x"] * 5])
    with pytest.raises(UniDPOError, match="train_df, row 1, answer: no text"):
        load_and_process_vqa_dpo(csv, gap, test)
    other = tmp_path / "other.csv"
    other.write_text("wrong\n" + "x\n" * 12)
    with pytest.raises(UniDPOError, match="no column 'rejected' \\(it has wrong\\)"):
        load_and_process_vqa_dpo(other, train, test)
    other.write_text("rejected,n\n" + "x,1\n" * 11 + ",1\n")
    with pytest.raises(UniDPOError, match="row 11, rejected: empty"):
        load_and_process_vqa_dpo(other, train, test)
    with pytest.raises(UniDPOError, match="cannot be read as CSV"):
        load_and_process_vqa_dpo(tmp_path / "none.csv", train, test)


def test_grey_images_and_the_way_on(csv, tmp_path) -> None:
    pairs = load_and_process_vqa_dpo(csv, frame("train", 7, range(7)), frame("test", 5, range(5)), grey=True)
    save_dataset(pairs, tmp_path / "vqa")
    assert datasets.load_from_disk(tmp_path / "vqa")["test"][0]["image"].mode == "L"
    with pytest.raises(UniDPOError, match="is there already"):
        save_dataset(pairs, tmp_path / "vqa")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rejected.csv", "vqa"]

    llamafactory = tmp_path / "test.json"
    convert(tmp_path / "vqa", llamafactory, from_format="vqa-rad", split="test", image_dir=tmp_path / "images")
    row = list(iter_rows(llamafactory))[3]
    assert row["instruction"] == "<image>test question 3?"
    assert (row["chosen"], row["rejected"]) == ("test answer 3", "test rejected 3")
    with Image.open(row["images"][0]) as image:
        assert image.size == (9, 7)
    convert(tmp_path / "vqa", tmp_path / "trl", from_format="vqa-rad", to_format="trl", split="train")
    trl = datasets.load_from_disk(tmp_path / "trl")["train"]
    assert len(trl) == 7
    assert trl[0]["images"][0].size == (9, 7)
    assert [part["type"] for part in trl[0]["prompt"][0]["content"]] == ["image", "text"]


def test_the_script_says_where_its_setting_stands(tmp_path) -> None:
    path = Path(__file__).parents[2] / "scripts" / "vqa_dpo_processing.py"
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "error: name the file or address of the rejected answers: --csv, or CSV at the top of this script\n"
    )
    filled = tmp_path / "scripts" / "vqa_dpo_processing.py"
    filled.parent.mkdir()
    text = path.read_text(encoding="utf-8").replace('CSV = ""', 'CSV = "gone.csv"')
    filled.write_text(text.replace("parents[1]", f"parents[0] / '{path.parents[1]}'"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(filled), "--dataset", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "no CSV" not in done.stderr
    assert "name the file or address" not in done.stderr


def test_the_script_s_functions_and_its_run(csv, tmp_path, capsys) -> None:
    path = Path(__file__).parents[2] / "scripts" / "vqa_dpo_processing.py"
    spec = importlib.util.spec_from_file_location("vqa_dpo_processing", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.load_and_process_vqa_dpo is load_and_process_vqa_dpo
    splits = {}
    for name, rows in (("train", 7), ("test", 5)):
        columns = frame(name, rows, range(rows)).to_dict("list")
        splits[name] = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "original")
    script.process(csv.as_uri(), str(tmp_path / "original"), tmp_path / "pairs", grey=False)
    saved = datasets.load_from_disk(tmp_path / "pairs")
    assert saved["test"]["rejected"][:] == [f"test rejected {row}" for row in range(5)]
    assert np.array_equal(np.asarray(saved["train"][2]["image"]), np.asarray(picture(20)))
    assert "7 training and 5 test pairs" in capsys.readouterr().out


def test_the_name_of_version_0_1_stays_importable() -> None:
    from uni_dpo.data import vqa_rad
    from uni_dpo.preferences.vqa_rad import download_file

    assert download_file is vqa_rad.download_file
