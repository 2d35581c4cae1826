"""Which class reads which file, and what happens to a file that is not the published one."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.vlmeval.config import Benchmark
from uni_dpo.vlmeval.load import load_benchmark


@pytest.fixture
def data(lmu_data: Path, monkeypatch: pytest.MonkeyPatch, kit: str) -> Path:
    monkeypatch.setenv("LMUData", str(lmu_data))
    return lmu_data


def test_the_published_file_is_official(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmeval.dataset import ImageYORNDataset

    digest = hashlib.md5((data / "POPE.tsv").read_bytes()).hexdigest()
    monkeypatch.setitem(ImageYORNDataset.DATASET_MD5, "POPE", digest)
    loaded = load_benchmark(Benchmark("POPE", "POPE", "ImageYORNDataset"), tmp_path)
    assert (loaded.source, loaded.digest, len(loaded.dataset.data)) == ("official", digest, 8)
    assert type(loaded.dataset) is ImageYORNDataset
    assert loaded.dataset.img_root == str(data / "images" / "POPE")


def test_another_file_is_never_overwritten(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmeval.dataset import image_base

    def never(url: str, path: str) -> None:
        raise AssertionError("a download was begun")

    monkeypatch.setattr(image_base, "download_file", never)
    before = (data / "POPE.tsv").read_bytes()
    benchmark = Benchmark("POPE", "POPE", "ImageYORNDataset")
    with pytest.raises(UniDPOError, match="is not the published file"):
        load_benchmark(benchmark, tmp_path, download=True)
    loaded = load_benchmark(benchmark, tmp_path, allow_modified=True)
    assert loaded.source == "modified"
    assert loaded.dataset.img_root.startswith(str(tmp_path)), "its images are kept apart from the published ones"
    assert (data / "POPE.tsv").read_bytes() == before


def test_a_missing_file_is_fetched_only_on_demand(
    kit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lmu_data: Path
) -> None:
    from vlmeval.dataset import ImageYORNDataset, image_base

    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("LMUData", str(tmp_path / "empty"))
    benchmark = Benchmark("POPE", "POPE")
    with pytest.raises(UniDPOError, match=r"looked for POPE\.tsv in .*; download http.* or give --download"):
        load_benchmark(benchmark, tmp_path)

    def fetch(url: str, path: str) -> None:
        Path(path).write_bytes((lmu_data / "POPE.tsv").read_bytes())

    monkeypatch.setattr(image_base, "download_file", fetch)
    assert load_benchmark(benchmark, tmp_path, download=True).source == "official"

    def offline(url: str, path: str) -> None:
        raise Exception("Failed to download it")

    (tmp_path / "empty" / "POPE.tsv").unlink()
    monkeypatch.setattr(image_base, "download_file", offline)
    with pytest.raises(UniDPOError, match="POPE: Failed to download it"):
        load_benchmark(benchmark, tmp_path, download=True)
    assert ImageYORNDataset.DATASET_MD5["POPE"], "VLMEvalKit's own table is as it was"


def test_own_data_is_scored_by_its_type_and_not_by_its_name(
    kit: str, tmp_path: Path, tsv: Callable, digits: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LMUData", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    row = {"question": "Which?", "answer": "A", "A": "left", "B": "right", "image_path": digits["held_out"][0].image}
    path = tsv(tmp_path / "MMBench_of_mine.tsv", [row])
    loaded = load_benchmark(Benchmark("MMBench_of_mine", "MMBench_of_mine", path=path), tmp_path / "images")
    assert (loaded.source, loaded.dataset.TYPE) == ("own", "MCQ")
    assert "mmbench" not in loaded.dataset.dataset_name.lower()
    assert not (tmp_path / "home" / "LMUData").exists()
    assert "LMUData" not in os.environ


def test_own_data_in_the_data_folder(data: Path, tmp_path: Path) -> None:
    (data / "mine.tsv").write_bytes((data / "SEEDBench_IMG.tsv").read_bytes())
    by_type = load_benchmark(Benchmark("mine", "mine", kind="MCQ"), tmp_path)
    by_name = load_benchmark(Benchmark("mine", "mine"), tmp_path)
    by_class = load_benchmark(Benchmark("mine", "mine", "ImageMCQDataset"), tmp_path)
    assert {loaded.source for loaded in (by_type, by_name, by_class)} == {"own"}
    assert [type(loaded.dataset).__name__ for loaded in (by_type, by_name, by_class)] == [
        "OwnMCQ",
        "OwnMCQ",
        "ImageMCQDataset",
    ]
    vqa = load_benchmark(Benchmark("mine", "mine", "CustomVQADataset"), tmp_path)
    assert type(vqa.dataset).__name__ == "OwnVQA"
    with pytest.raises(UniDPOError, match="ImageMCQDataset has no benchmark 'gone', and there is no "):
        load_benchmark(Benchmark("gone", "gone", "ImageMCQDataset"), tmp_path)


def test_faults_name_the_benchmark(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UniDPOError, match="has no dataset class 'ImageYORNDatset'; did you mean 'ImageYORNDataset'"):
        load_benchmark(Benchmark("POPE", "POPE", "ImageYORNDatset"), tmp_path)
    with pytest.raises(UniDPOError, match="nine: 'nine' is no benchmark of VLMEvalKit"):
        load_benchmark(Benchmark("nine", "nine"), tmp_path)
    with pytest.raises(UniDPOError, match="one question per row"):
        load_benchmark(Benchmark("MMDU", "MMDU", "MMDUDataset"), tmp_path)
