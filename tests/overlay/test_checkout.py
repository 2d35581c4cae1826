from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory.seams import needed_names
from uni_dpo.overlay.checkout import Upstream, detect


@pytest.mark.parametrize("version", ["0.9.4", "0.9.5", "0.9.5.dev0"])
def test_names_llamafactory_and_its_version(llamafactory, version):
    checkout = detect(llamafactory(version))
    assert (checkout.upstream, checkout.version) == (Upstream.LLAMAFACTORY, version)
    assert str(checkout) == f"LlamaFactory {version} in {checkout.root}"


def test_names_vlmevalkit_and_its_version(vlmevalkit):
    checkout = detect(vlmevalkit)
    assert (checkout.upstream, checkout.version) == (Upstream.VLMEVALKIT, "0.2rc1")


def with_seams(root: Path) -> Path:
    for module, name in needed_names():
        place = root / "src" / module.replace(".", "/")
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as text:
            text.write(f"{name} = None\n")
    return root


@pytest.mark.parametrize(
    ("version", "tested"),
    [
        ("0.9.3", False),
        ("0.9.4.dev0", False),
        ("0.9.4", True),
        ("0.9.5rc1", True),
        ("0.9.5", True),
        ("0.9.5.post1", False),
        ("0.9.6.dev0", False),
        ("0.9.40", False),
        ("main", False),
    ],
)
def test_says_one_word_about_an_untested_version_and_takes_it(llamafactory, version, tested):
    remarks = detect(with_seams(llamafactory(version))).remarks()
    assert [f"{version} is not among the tested" in remark for remark in remarks] == [True] * (not tested)


def test_says_what_a_checkout_lacks(llamafactory):
    root = with_seams(llamafactory())
    (root / "src/llamafactory/data/loader.py").write_text("def load(): ...\n")
    (remark,) = detect(root).remarks()
    assert "no llamafactory.data.loader.align_dataset" in remark
    assert "git checkout v0.9.5" in remark


def test_refuses_a_checkout_without_a_version(llamafactory):
    root = llamafactory()
    (root / "src/llamafactory/extras/env.py").write_text("import os\n")
    with pytest.raises(UniDPOError, match=r"env\.py: states no version"):
        detect(root)


@pytest.mark.parametrize("missing", ["src/train.py", "src/llamafactory/train/dpo/__init__.py"])
def test_refuses_a_folder_that_lacks_a_file_of_a_checkout(llamafactory, missing):
    root = llamafactory()
    (root / missing).unlink()
    with pytest.raises(UniDPOError, match="neither a LlamaFactory nor a VLMEvalKit checkout"):
        detect(root)


def test_refuses_the_package_inside_a_checkout_and_a_missing_folder(llamafactory, tmp_path: Path):
    with pytest.raises(UniDPOError, match="neither"):
        detect(llamafactory() / "src")
    with pytest.raises(UniDPOError, match="no such folder"):
        detect(tmp_path / "nowhere")
