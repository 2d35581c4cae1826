import subprocess
from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.overlay import manifest
from uni_dpo.overlay.checkout import SIGNS, Upstream

REPOSITORY = Path(__file__).parents[2]
COPIED = {
    Upstream.LLAMAFACTORY: ["LlamaFactory/.", "src", "data", "examples", "scripts"],
    Upstream.VLMEVALKIT: ["VLMEvalKit/.", "src/."],
}
"""What the one line of the documentation, `cp -r … <checkout>/`, copies."""


@pytest.mark.parametrize("upstream", list(Upstream))
def test_the_files_are_those_that_the_one_line_copies(upstream, tmp_path):
    subprocess.run(["cp", "-r", *COPIED[upstream], tmp_path], cwd=REPOSITORY, check=True)
    copied = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files = {place: path.read_bytes() for place, path in manifest.overlay_files(upstream).items()}
    assert files == copied


@pytest.mark.parametrize("upstream", list(Upstream))
def test_one_upstream_file_is_overwritten_and_its_additions_are_marked(upstream):
    overwritten = SIGNS[upstream].overwritten
    files = manifest.overlay_files(upstream)
    lines = files[overwritten].read_text().splitlines()
    assert lines.index("#! Below this line are additions for Uni-DPO.") < lines.index(
        "#! Above this line are additions for Uni-DPO."
    )
    upstreams_package = overwritten.removesuffix("__init__.py")
    assert [place for place in files if place.startswith(upstreams_package)] == [overwritten]


def test_an_installed_package_brings_the_folders_with_it(tmp_path, monkeypatch):
    for place in ("_overlay/LlamaFactory/a.py", "_overlay/VLMEvalKit/b.py", "_overlay/data/c.json", "core.py"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(place)
    monkeypatch.setattr(manifest, "PACKAGE", tmp_path)
    assert list(manifest.overlay_files(Upstream.LLAMAFACTORY)) == [
        "a.py",
        "data/c.json",
        "src/uni_dpo/core.py",
    ]
    assert list(manifest.overlay_files(Upstream.VLMEVALKIT)) == ["b.py", "uni_dpo/core.py"]


def test_a_copy_without_the_folders_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "PACKAGE", tmp_path / "checkout/src/uni_dpo")
    with pytest.raises(UniDPOError, match="not beside this copy of uni_dpo"):
        manifest.overlay_files(Upstream.LLAMAFACTORY)
