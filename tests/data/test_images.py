import base64
import io
import os
import warnings
from pathlib import Path

import pytest
from PIL import Image

from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.image_state import BrokenImageError, MediaState, check_shape
from uni_dpo.data.images import ImageChecker, ImageFolder, embedded_image, image_paths, source_state


def state(folder: Path, image, root=None):
    with ImageChecker(image_paths(folder, root)).running() as images:
        return images.states([image])[0]


def test_good_images_have_their_true_size(folder) -> None:
    assert (state(folder, "images/red.png").width, state(folder, "images/red.png").height) == (40, 30)
    jpeg = state(folder, "images/grey.jpg")
    assert (jpeg.width, jpeg.height, jpeg.kind) == (256, 256, "")


def test_paths_fall_back_to_what_they_are_as_in_llamafactory(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    assert state(folder / "data", "images/red.png").kind == ""
    assert state(folder / "data", str(folder / "images/red.png")).kind == ""
    assert state(folder / "data", "images/red.png", root=folder / "data").kind == "image_missing"


def test_a_link_that_the_folder_s_owner_made_may_lead_out_of_it(folder) -> None:
    root = folder / "linked"
    root.mkdir()
    (root / "pictures").symlink_to(folder / "images")
    assert state(root, "pictures/red.png", root=root).kind == ""
    assert state(root, "pictures/../../images/red.png", root=root).kind == "image_outside"


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (b"", "image_zero"),
        (b"not an image", "image_not_an_image"),
        (b"version https://git-lfs.github.com/spec/v1", "image_not_an_image"),
        ({"bytes": b"", "path": None}, "image_zero"),
        ("", "image_path"),
        ("a\0b", "image_path"),
        ("images/red.png/more", "image_missing"),
    ],
)
def test_what_is_no_image(folder, image, kind) -> None:
    assert state(folder, image).kind == kind


def test_encoded_images_are_looked_at(folder) -> None:
    encoded = (folder / "images" / "red.png").read_bytes()
    assert state(folder, encoded).width == 40
    assert state(folder, {"bytes": encoded, "path": "x"}).height == 30
    assert state(folder, encoded[:70]).kind == "image_unreadable"


def test_a_file_that_may_not_be_read_is_said_to_be_so(folder, monkeypatch) -> None:
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    seen = state(folder, "images/red.png")
    assert (seen.kind, seen.found) == ("image_unreadable", "images/red.png cannot be opened (Permission denied)")


def test_headers_only_misses_what_only_decoding_finds(folder) -> None:
    assert state(folder, "images/cut.jpg").kind == "image_unreadable"
    assert source_state(folder / "images/cut.jpg", "cut.jpg", decode=False).kind == ""


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000)])
def test_bombs_are_refused_without_a_warning_and_without_decoding(folder, size) -> None:
    path = folder / "images" / "huge.png"
    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
    try:
        Image.new("1", size).save(path)
    finally:
        Image.MAX_IMAGE_PIXELS = before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert state(folder, "images/huge.png").kind == "image_bomb"


def test_each_path_is_opened_once(folder, monkeypatch) -> None:
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(1) or real(*a, **k))
    with ImageChecker(image_paths(folder)).running() as images:
        images.states(["images/red.png"] * 50)
        images.states(["images/red.png", "images/grey.jpg"])
    assert len(opened) == 2


def test_a_stored_image_has_a_name_of_our_own(folder) -> None:
    store = ImageFolder(folder / "store", image_paths(folder, folder))
    stored = Path(store.put("images/red.png"))
    assert stored.read_bytes() == (folder / "images/red.png").read_bytes()
    assert stored.is_relative_to(folder / "store")
    assert store.put({"bytes": stored.read_bytes(), "path": "../../evil.sh"}) == str(stored)
    for path in ("../x.png", "/etc/hostname", "images/drawing.png", "images/none.png"):
        with pytest.raises(PreferenceDataError):
            store.put(path)
    assert len([name for _, _, names in os.walk(folder / "store") for name in names]) == 1


def encoded(mode: str, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


def test_an_image_may_be_written_as_text(folder) -> None:
    data = encoded("RGB")
    text = base64.b64encode(data).decode()
    for written in (text, base64.encodebytes(data).decode(), f"data:image/png;base64,{text}"):
        assert embedded_image(written) == data
        assert state(folder, written) == MediaState(40, 30)
    for other in ("images/red.png", "", "iVBORw0KGgo, no base64", "data:text/plain;base64,aGVsbG8=", "Qk", "a" * 400):
        assert embedded_image(other) is None


@pytest.mark.parametrize(("mode", "kind"), [("I;16", "PNG"), ("I", "TIFF"), ("F", "TIFF")])
def test_more_than_eight_bits_are_refused(folder, mode, kind) -> None:
    (folder / "images" / "deep.png").write_bytes(encoded(mode, kind=kind))
    assert state(folder, "images/deep.png").kind == "image_depth"


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("P", "GIF"), ("LA", "PNG"), ("1", "PNG")])
def test_what_becomes_rgb_without_loss_of_depth_is_taken(folder, mode, kind) -> None:
    (folder / "images" / "other.png").write_bytes(encoded(mode, kind=kind))
    assert state(folder, "images/other.png") == MediaState(40, 30)


@pytest.mark.parametrize(("drawn_in", "kind"), [((0, 0, 0), "image_transparency"), ((255, 0, 0), "")])
def test_a_drawing_that_lies_in_the_transparency_alone_is_refused(folder, drawn_in, kind) -> None:
    """Without its transparency a black drawing on a transparent black ground is a black rectangle."""
    image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    image.paste((*drawn_in, 255), (5, 5, 20, 20))
    image.save(folder / "images" / "drawn.png")
    assert state(folder, "images/drawn.png").kind == kind
    with Image.open(folder / "images" / "drawn.png") as opened:
        assert (len(opened.convert("RGB").getcolors()) == 1) == bool(kind)


def test_only_a_side_that_vanishes_is_too_long(folder) -> None:
    """768² / (w · 1) < 1 leaves int(√…) = 0 pixels of height from w = 589,825 on."""
    for width, kind in ((589_824, ""), (589_825, "image_shape")):
        (folder / "images" / "long.png").write_bytes(encoded("1", (width, 1)))
        assert state(folder, "images/long.png").kind == kind


def test_pipes_and_impossible_names_are_never_opened(folder) -> None:
    os.mkfifo(folder / "images" / "pipe.png")
    assert state(folder, "images/pipe.png").found == "images/pipe.png is a named pipe"
    assert state(folder, "/dev/zero").kind == "image_unreadable"
    assert state(folder, "a" * 300 + ".png").kind == "image_missing"
    assert state(folder, "a\udcff.png").kind == "image_path"


def test_paths_start_in_the_folder_and_then_beside_the_data(folder) -> None:
    (folder / "other" / "images").mkdir(parents=True)
    (folder / "other" / "images" / "blue.png").write_bytes(encoded("RGB", (50, 60)))
    with ImageChecker(image_paths(folder, None, folder / "other")).running() as images:
        found = images.states(["images/red.png", "images/blue.png"])
    assert [(each.width, each.height) for each in found] == [(40, 30), (50, 60)]


def test_a_root_holds_also_where_nothing_is_copied(folder) -> None:
    watched = ImageFolder(None, image_paths(folder, folder))
    assert watched.put("images/anything.png") == "images/anything.png"
    for path in ("/etc/hostname", "../x.png"):
        with pytest.raises(PreferenceDataError, match="leaves"):
            watched.put(path)
    assert ImageFolder(None, image_paths(None)).put("/etc/hostname") == "/etc/hostname"


def test_an_image_over_200_times_as_long_as_wide_is_refused_and_one_of_200_is_not() -> None:
    check_shape(2000, 10, "a.png")
    check_shape(10, 2000, "a.png")
    for size in ((2001, 10), (10, 2001), (4096, 18)):
        with pytest.raises(BrokenImageError, match=r"a\.png has .* pixels, one side over 200 times the other; crop it"):
            check_shape(*size, "a.png")
