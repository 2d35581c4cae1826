import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.overlay import changes
from uni_dpo.overlay.changes import DATASET, State, apply, check, revert
from uni_dpo.overlay.checkout import detect

RECIPE = "examples/uni_dpo/Qwen2_VL_2B_uni_dpo.sh"
OVERWRITTEN = "src/llamafactory/train/dpo/__init__.py"


def contents(root: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in root.rglob("*")
    }


def states(checkout) -> Counter:
    return Counter(change.state for change in check(checkout))


@pytest.fixture
def checkout(llamafactory):
    return detect(llamafactory())


def test_check_says_what_apply_will_do_and_writes_nothing(checkout):
    before = contents(checkout.root)
    planned = check(checkout)
    assert contents(checkout.root) == before
    by_place = {change.place: change.state for change in planned}
    assert by_place[OVERWRITTEN] is State.REPLACE
    assert by_place["data/dataset_info.json"] is State.ADD_ENTRY
    assert by_place["src/uni_dpo/llamafactory/__init__.py"] is State.ADD
    assert states(checkout)[State.ADD] == len(planned) - 2
    assert apply(checkout) == planned


def test_apply_adds_the_dataset_beside_the_others(checkout):
    apply(checkout)
    described = json.loads((checkout.root / "data/dataset_info.json").read_text())
    assert described["identity"] == {"file_name": "identity.json"}
    assert described[DATASET]["ranking"] is True
    assert described[DATASET]["columns"]["score_chosen"] == "score_chosen"


def test_a_second_apply_changes_nothing(checkout):
    apply(checkout)
    before = contents(checkout.root)
    times = {path: path.stat().st_mtime_ns for path in checkout.root.rglob("*")}
    assert not any(change.is_due for change in apply(checkout))
    assert contents(checkout.root) == before
    assert {path: path.stat().st_mtime_ns for path in checkout.root.rglob("*")} == times


def test_revert_restores_every_byte(checkout):
    before = contents(checkout.root)
    apply(checkout)
    cache = checkout.root / "src/uni_dpo/llamafactory/__pycache__"
    cache.mkdir()
    (cache / "data.cpython-311.pyc").write_bytes(b"")
    revert(checkout)
    assert contents(checkout.root) == before


def test_vlmevalkit_goes_the_same_way(vlmevalkit):
    checkout = detect(vlmevalkit)
    before = contents(checkout.root)
    places = {change.place: change.state for change in apply(checkout)}
    assert places["vlmeval/vlm/qwen2_vl/__init__.py"] is State.REPLACE
    assert places["uni_dpo/objective.py"] is State.ADD
    assert "data/dataset_info.json" not in places
    revert(checkout)
    assert contents(checkout.root) == before


def test_what_others_added_since_stays(checkout):
    apply(checkout)
    pairs = checkout.root / f"data/uni_dpo/{DATASET}.json"
    pairs.write_text("[]")
    info = checkout.root / "data/dataset_info.json"
    described = json.loads(info.read_text())
    info.write_text(json.dumps({**described, "theirs": {"file_name": "theirs.json"}}, indent=2))
    revert(checkout)
    assert pairs.read_text() == "[]"
    assert set(json.loads(info.read_text())) == {"identity", "theirs"}


@pytest.mark.parametrize("place", [RECIPE, OVERWRITTEN])
def test_changed_files_are_named_and_kept_without_force(checkout, place):
    before = contents(checkout.root)
    apply(checkout)
    changed = checkout.root / place
    changed.write_text(changed.read_text().replace("register()", "pass").replace("true", "false"))
    mine = contents(checkout.root)
    with pytest.raises(UniDPOError, match=place):
        revert(checkout)
    assert contents(checkout.root) == mine
    revert(checkout, force=True)
    assert contents(checkout.root) == before


def test_apply_does_not_overwrite_what_it_did_not_write(checkout):
    own = checkout.root / RECIPE
    own.parent.mkdir(parents=True)
    own.write_text("echo mine\n")
    before = contents(checkout.root)
    with pytest.raises(UniDPOError, match=RECIPE):
        apply(checkout)
    assert contents(checkout.root) == before
    apply(checkout, force=True)
    assert "echo mine" not in own.read_text()
    revert(checkout)
    assert contents(checkout.root) == before


def test_an_entry_of_the_users_own_is_left_alone(checkout):
    info = checkout.root / "data/dataset_info.json"
    info.write_text(json.dumps({DATASET: {"file_name": "mine.json"}}))
    before = info.read_bytes()
    apply(checkout)
    assert info.read_bytes() == before
    assert states(checkout)[State.OTHER_ENTRY] == 1


def test_a_newer_overlay_replaces_an_older_one_whole(checkout, monkeypatch, tmp_path):
    before = contents(checkout.root)
    newer = changes.overlay_files(checkout.upstream)
    other = tmp_path / "other.py"
    other.write_text("old = 1\n")
    older = {**newer, RECIPE: other, "src/uni_dpo/gone.py": other}
    monkeypatch.setattr(changes, "overlay_files", lambda _: older)
    apply(checkout)
    monkeypatch.undo()
    found = {change.place: change.state for change in check(checkout)}
    assert found[RECIPE] is State.UPDATE
    assert found["src/uni_dpo/errors.py"] is State.UP_TO_DATE
    assert found["src/uni_dpo/gone.py"] is State.REMOVE
    apply(checkout)
    assert not (checkout.root / "src/uni_dpo/gone.py").exists()
    assert states(checkout) == {State.UP_TO_DATE: len(newer) + 1}
    revert(checkout)
    assert contents(checkout.root) == before


def test_an_interrupted_apply_can_be_finished_or_taken_back(checkout, monkeypatch):
    before = contents(checkout.root)
    for finish in (revert, apply):
        copied = []

        def fail_at_the_tenth(source, target, copied=copied):
            if len(copied) == 10:
                raise KeyboardInterrupt
            copied.append(target)
            target.write_bytes(source.read_bytes())

        monkeypatch.setattr(changes.shutil, "copy", fail_at_the_tenth)
        with pytest.raises(KeyboardInterrupt):
            apply(checkout)
        monkeypatch.undo()
        finish(checkout)
        if finish is revert:
            assert contents(checkout.root) == before
    assert set(states(checkout)) == {State.UP_TO_DATE}
    revert(checkout)
    assert contents(checkout.root) == before


def test_files_that_were_copied_by_hand_stay_where_they_are(checkout):
    for place, source in changes.overlay_files(checkout.upstream).items():
        (checkout.root / place).parent.mkdir(parents=True, exist_ok=True)
        (checkout.root / place).write_bytes(source.read_bytes())
    before = contents(checkout.root)
    assert [change.place for change in apply(checkout) if change.is_due] == ["data/dataset_info.json"]
    revert(checkout)
    assert contents(checkout.root) == before


@pytest.mark.parametrize("linked", ["data", "examples", "src/uni_dpo", ".uni_dpo_overlay"])
def test_links_that_lead_out_of_the_checkout_are_refused(checkout, tmp_path, linked):
    outside = tmp_path / "outside"
    outside.mkdir()
    link = checkout.root / linked
    if link.exists():
        link.rename(tmp_path / "moved")
    link.symlink_to(outside)
    with pytest.raises(UniDPOError, match=linked):
        apply(checkout)
    assert not list(outside.iterdir())


def test_a_folder_in_the_place_of_a_file_is_named(checkout):
    (checkout.root / RECIPE).mkdir(parents=True)
    with pytest.raises(UniDPOError, match=rf"{RECIPE}: is a link or a folder"):
        apply(checkout)


def test_a_record_that_points_outside_is_refused(checkout, tmp_path):
    apply(checkout)
    precious = tmp_path / "precious"
    precious.write_text("keep")
    record = checkout.root / ".uni_dpo_overlay/manifest.json"
    manifest = json.loads(record.read_text())
    manifest["written"]["../precious"] = changes.sha256(precious)
    record.write_text(json.dumps(manifest))
    with pytest.raises(UniDPOError, match="precious"):
        revert(checkout)
    assert precious.read_text() == "keep"


def test_revert_needs_a_record_and_the_originals(checkout):
    with pytest.raises(UniDPOError, match="nothing to revert"):
        revert(checkout)
    apply(checkout)
    (checkout.root / ".uni_dpo_overlay/originals" / OVERWRITTEN).unlink()
    applied = contents(checkout.root)
    with pytest.raises(UniDPOError, match=r"dpo/__init__\.py: missing or damaged"):
        revert(checkout)
    assert contents(checkout.root) == applied


def test_a_damaged_record_is_named(checkout):
    apply(checkout)
    (checkout.root / ".uni_dpo_overlay/manifest.json").write_text("{")
    with pytest.raises(UniDPOError, match=r"manifest\.json: damaged"):
        check(checkout)


@pytest.mark.parametrize("at", [1, 30])
def test_what_a_killed_apply_left_is_taken_back_whole(checkout, at):
    before = contents(checkout.root)
    code = (
        "import os, shutil, signal, sys\n"
        "from uni_dpo.overlay import apply, changes, detect\n"
        "copied = []\n"
        "def copy(source, target):\n"
        "    copied.append(target)\n"
        "    target.write_bytes(source.read_bytes() if len(copied) < int(sys.argv[2]) else b'half')\n"
        "    len(copied) < int(sys.argv[2]) or os.kill(os.getpid(), signal.SIGKILL)\n"
        "changes.shutil.copy = copy\n"
        "apply(detect(sys.argv[1]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(checkout.root), str(at)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(path.suffix == ".tmp" for path in checkout.root.rglob("*"))
    revert(checkout)
    assert contents(checkout.root) == before


def test_an_apply_killed_before_it_has_a_record_leaves_nothing(checkout, monkeypatch):
    before = contents(checkout.root)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(changes.Manifest, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        apply(checkout)
    assert (checkout.root / ".uni_dpo_overlay/originals" / OVERWRITTEN).is_file()
    assert revert(checkout) == []
    assert contents(checkout.root) == before


def test_a_lost_record_is_named_and_the_original_kept(checkout):
    apply(checkout)
    (checkout.root / ".uni_dpo_overlay/manifest.json").unlink()
    with pytest.raises(UniDPOError, match="record is missing"):
        revert(checkout)
    assert (checkout.root / ".uni_dpo_overlay/originals" / OVERWRITTEN).is_file()


@pytest.mark.parametrize("version", ["0.9.9", "2.0"])
def test_a_checkout_that_moved_to_another_version_keeps_its_files(checkout, version):
    apply(checkout)
    moved = {
        "src/llamafactory/extras/env.py": f'VERSION = "{version}"\n',
        OVERWRITTEN: "from .newer import run_dpo\n",
        "data/dataset_info.json": '{"identity": {}}\n',
    }
    for place, text in moved.items():
        (checkout.root / place).write_text(text)
    revert(str(checkout.root))
    assert {place: (checkout.root / place).read_text() for place in moved} == moved
    assert not (checkout.root / "src/uni_dpo").exists()
    assert not (checkout.root / ".uni_dpo_overlay").exists()


def test_a_write_protected_checkout_is_named_before_anything_is_written(checkout, monkeypatch):
    before = contents(checkout.root)

    def refuse(path):
        if path.parent == checkout.root / "src/uni_dpo/llamafactory":
            raise UniDPOError(f"{path}: cannot be written")

    monkeypatch.setattr(changes, "check_writable", refuse)
    with pytest.raises(UniDPOError, match="llamafactory"):
        apply(checkout)
    assert contents(checkout.root) == before
