from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.overlay.checkout import Upstream, detect


@pytest.mark.parametrize("version", ["0.9.4", "0.9.5", "0.9.5.dev0"])
def test_names_llamafactory_and_its_version(llamafactory, version):
    checkout = detect(llamafactory(version))
    assert (checkout.upstream, checkout.version) == (Upstream.LLAMAFACTORY, version)
    assert str(checkout) == f"LlamaFactory {version} in {checkout.root}"


def test_names_vlmevalkit_and_its_version(vlmevalkit):
    checkout = detect(vlmevalkit)
    assert (checkout.upstream, checkout.version) == (Upstream.VLMEVALKIT, "0.2rc1")


@pytest.mark.parametrize("version", ["0.9.3", "0.9.40", "0.9.5.1", "0.10.0"])
def test_refuses_an_untested_version_by_name(llamafactory, version):
    with pytest.raises(UniDPOError, match=f"LlamaFactory {version}; .* 0.9.4 and 0.9.5 only"):
        detect(llamafactory(version))


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
