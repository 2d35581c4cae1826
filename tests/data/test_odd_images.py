"""Images that a viewer shows in another way than a model sees them: every reader sees what training sees."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from uni_dpo.data.checks.check import check_dataset
from uni_dpo.data.checks.preflight import preflight
from uni_dpo.data.image_state import ANIMATED, TURNED, encoded_oddity
from uni_dpo.models.backends.base import Request
from uni_dpo.models.backends.server import request_body
from uni_dpo.models.prompt import load_vision, open_image

LEFT, RIGHT = (250, 0, 0), (0, 0, 250)


def photo(path: Path, orientation: int = 6, size: tuple[int, int] = (200, 100)) -> Path:
    """A picture that is red on its left as it is stored."""
    picture = Image.new("RGB", size, RIGHT)
    picture.paste(LEFT, (0, 0, size[0] // 2, size[1]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif)
    return path


def frames(path: Path, count: int = 2) -> Path:
    """A file of frames, the first of which is red."""
    first, *others = [Image.new("RGB", (100, 100), LEFT if not at else RIGHT) for at in range(count)]
    first.save(path, save_all=True, append_images=others)
    return path


@pytest.mark.parametrize(
    ("name", "orientation", "kind"),
    [
        ("a.jpg", 6, TURNED), ("a.jpg", 2, TURNED), ("a.png", 8, TURNED), ("a.webp", 3, TURNED),
        ("a.jpg", 1, ""), ("a.jpg", 0, ""), ("a.jpg", 9, ""), ("a.tiff", 6, ""),
    ],
)  # fmt: skip
def test_what_is_turned(tmp_path: Path, name: str, orientation: int, kind: str) -> None:
    """Pillow turns a TIFF for everybody; 0 and 9 mean nothing."""
    assert encoded_oddity(photo(tmp_path / name, orientation).read_bytes()) == kind


@pytest.mark.parametrize("suffix", ["gif", "webp", "tiff", "png"])
def test_what_has_several_frames(tmp_path: Path, suffix: str) -> None:
    assert encoded_oddity(frames(tmp_path / f"a.{suffix}").read_bytes()) == ANIMATED
    assert encoded_oddity(frames(tmp_path / f"b.{suffix}", 1).read_bytes()) == ""


def test_a_photograph_with_its_depth_and_broken_exif_data_are_not_odd(tmp_path: Path) -> None:
    assert encoded_oddity(frames(tmp_path / "a.mpo").read_bytes()) == ""
    Image.new("RGB", (10, 10)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff")
    assert encoded_oddity((tmp_path / "a.jpg").read_bytes()) == ""
    assert encoded_oddity(b"no image") == ""


def test_every_reader_sees_what_training_sees(tmp_path: Path) -> None:
    from llamafactory.data.mm_plugin import get_mm_plugin

    from uni_dpo.engine import Question
    from uni_dpo.grpo.trainer import dataset

    def sent(path: str) -> Image.Image:
        url = request_body("m", Request("Which?", (path,)), {})["messages"][0]["content"][0]["image_url"]["url"]
        return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))

    odd = [str(photo(tmp_path / "turned.jpg")), str(frames(tmp_path / "frames.gif"))]
    training = get_mm_plugin("qwen2_vl", image_token="<|image_pad|>", video_token="<|video_pad|>")
    sizes = {"image_max_pixels": 768 * 768, "image_min_pixels": 32 * 32}
    seen = {
        "training": training._regularize_images(odd, **sizes)["images"],
        "predict": [open_image(path) for path in odd],
        "eval": load_vision([{"type": "image", "image": path} for path in odd])[0],
        "grpo": dataset([Question("q", "Which?", tuple(odd))])[0]["images"],
        "server": [sent(path) for path in odd],
    }
    for reader, (turned, first) in seen.items():
        assert turned.width > turned.height, reader
        assert turned.getpixel((5, turned.height // 2))[0] > 200, reader
        assert first.getpixel((50, 50))[0] > 200, reader
        assert reader == "training" or turned.getexif().get(0x0112) is None, reader
        assert not getattr(first, "is_animated", False), reader


def test_check_and_preflight_name_them_by_row_and_field(folder, good_row, register) -> None:
    photo(folder / "images" / "turned.jpg")
    frames(folder / "images" / "frames.gif")
    rows = [good_row(at) for at in range(12)]
    rows[3]["images"] = ["images/turned.jpg"]
    rows[5]["images"], rows[5]["instruction"] = ["images/red.png", "images/turned.jpg"], "<image><image>Which?"
    for row in rows[6:]:
        row["images"] = ["images/frames.gif"]
    name = register("d", rows)
    turned = (
        "images with EXIF orientation: 2 (row 3, images[0]; row 5, images[1]): a model sees them as stored, unturned, "
        "except where `datasets.Image` opens them, as in TRL; turn the pixels: mogrify -auto-orient FILE"
    )
    places = "; ".join(f"row {at}, images[0]" for at in range(6, 11))
    several = (
        f"images with several frames or pages: 6 ({places}; …): a model sees the first alone; save the one that is "
        "meant as the image"
    )
    report = check_dataset(name, dataset_dir=folder / "data", media_dir=folder)
    assert report.faultless
    assert [line for line in report.warnings if "images with" in line] == [turned, several]
    seen = preflight([name], folder / "data", folder)
    assert seen.warnings == [f"{name}: {turned}", f"{name}: {several}"]
