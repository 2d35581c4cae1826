import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image

from uni_dpo.data.columns import IMAGE_COLUMNS
from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.image_paths import CHANGED, MISSING, OUTSIDE, RIGHT, WITHOUT_ANCHOR, rebase_images
from uni_dpo.data.tables.reading import iter_rows

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "here" / "MM-RLHF"
    for name in ("long/1.png", "short/a/2.png"):
        (root / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name)
    return root


@pytest.fixture
def dataset(tmp_path: Path, images: Path) -> Path:
    file = tmp_path / "pairs.json"
    paths = [
        ["/their/MM-RLHF/long/1.png", "C:\\them\\MM-RLHF\\short\\a\\2.png"],
        [str(images / "long/1.png")],
        ["/their/MM-RLHF/mcq/9.png"],
        ["/their/others/1.png"],
        ["/their/MM-RLHF/../../../etc/hostname"],
        ["/MM-RLHF/old/MM-RLHF/long/1.png"],
        ["/their/MM-RLHF-2/long/1.png"],
        [],
        None,
    ]
    file.write_text(json.dumps([{"instruction": "像?", "images": p} for p in paths], indent=4))
    return file


def test_paths_get_the_new_root_and_every_kind_is_counted(dataset, images) -> None:
    before = dataset.read_bytes()
    result = rebase_images(dataset, [images])
    assert [row["images"] for row in iter_rows(dataset)] == [
        [str(images / "long/1.png"), str(images / "short/a/2.png")],
        [str(images / "long/1.png")],
        [str(images / "mcq/9.png")],
        ["/their/others/1.png"],
        ["/their/MM-RLHF/../../../etc/hostname"],
        [str(images / "long/1.png")],
        ["/their/MM-RLHF-2/long/1.png"],
        [],
        None,
    ]
    assert result.rows == 9
    assert result.paths == {CHANGED: 4, RIGHT: 1, WITHOUT_ANCHOR: 2, OUTSIDE: 1, MISSING: 3}
    assert "paths point to no file: 3, such as " + str(images / "mcq/9.png") in result.lines()
    assert result.backup == dataset.with_name("pairs.json.bak")
    assert result.backup.read_bytes() == before


def test_an_older_copy_is_never_overwritten(dataset, images) -> None:
    dataset.with_name("pairs.json.bak").write_text("precious")
    assert rebase_images(dataset, [images]).backup == dataset.with_name("pairs.json.bak1")
    assert dataset.with_name("pairs.json.bak").read_text() == "precious"


def test_check_and_a_second_run_write_nothing(dataset, images) -> None:
    before = dataset.read_bytes()
    assert rebase_images(dataset, [images], check=True).paths[CHANGED] == 4
    assert dataset.read_bytes() == before
    rebase_images(dataset, [images])
    again = rebase_images(dataset, [images])
    assert (again.paths[CHANGED], again.output, again.backup) == (0, None, None)


def test_another_output_leaves_the_input_alone(dataset, images, tmp_path) -> None:
    before = dataset.read_bytes()
    result = rebase_images(dataset, [images], output_file=tmp_path / "moved.jsonl")
    assert dataset.read_bytes() == before
    assert (result.output, result.backup) == (tmp_path / "moved.jsonl", None)
    assert len(list(iter_rows(tmp_path / "moved.jsonl"))) == 9


def test_the_first_root_that_has_the_file_wins(tmp_path, images) -> None:
    other = tmp_path / "other"
    (other / "mcq").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(other / "mcq" / "3.png")
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"image": "x/pool/mcq/3.png"}) + "\n" + json.dumps({"image": "x/pool/gone.png"}))
    result = rebase_images(file, [images, other], anchor="pool")
    assert [r["image"] for r in iter_rows(file)] == [str(other / "mcq/3.png"), str(images / "gone.png")]
    assert (result.paths[CHANGED], result.paths[MISSING]) == (2, 1)


def test_paths_move_under_every_name_of_an_image_column(tmp_path, images) -> None:
    file, moved = tmp_path / "d.jsonl", str(images / "long/1.png")
    old = "/their/MM-RLHF/long/1.png"
    file.write_text("\n".join(json.dumps({name: old}) for name in (*IMAGE_COLUMNS, "rejected_images", "source")))
    assert rebase_images(file, [images]).paths[CHANGED] == len(IMAGE_COLUMNS) + 1
    *rows, other = iter_rows(file)
    assert rows == [{name: moved} for name in (*IMAGE_COLUMNS, "rejected_images")]
    assert other == {"source": old}


def test_a_broken_row_stops_it_and_the_input_stays_whole(tmp_path, images) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"images": ["/a/MM-RLHF/long/1.png"]}\n{"images": [\n')
    before = file.read_bytes()
    with pytest.raises(PreferenceDataError, match="row 1"):
        rebase_images(file, [images])
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["d.jsonl"]


@pytest.mark.parametrize("copied", [False, True])
def test_the_script_runs_with_nothing_installed(dataset, images, tmp_path, copied) -> None:
    tree = REPOSITORY
    if copied:
        tree = tmp_path / "LlamaFactory"
        shutil.copytree(REPOSITORY / "src" / "uni_dpo", tree / "src" / "uni_dpo")
        shutil.copytree(REPOSITORY / "scripts", tree / "scripts")
    command = [sys.executable, "-S", "-c", RUN_WITHOUT_OUR_INSTALLATION, sysconfig.get_paths()["purelib"]]
    command += [tree / "scripts/change_data_image_path.py", "--input_file", dataset, "--image_dir", images]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "paths changed: 4" in done.stdout
    assert "copy of the original" in done.stdout
    failed = subprocess.run(
        [*command[:-1], tmp_path / "none"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr


RUN_WITHOUT_OUR_INSTALLATION = """
import runpy, sys
sys.path.append(sys.argv[1])  # with -S no .pth file is read: an editable installation of ours stays unseen
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
