"""Image features from the disk: the same numbers without a look, in any batch, and never those of something else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import MIXED, VISION_FAMILIES, Pair, pair_batch, share_prefix, tiny_model
from torch import Tensor, nn

from uni_dpo.shared_prefix.families import FLAT_FAMILIES, image_token_id
from uni_dpo.shared_prefix.forward import pair_scores
from uni_dpo.shared_prefix.image_store import ImageStore, image_keys

TOWER = {"model": "tiny", "precision": "float32"}
TOLD_APART = [family for family in VISION_FAMILIES if family not in FLAT_FAMILIES]


def frozen(family: str) -> tuple[nn.Module, list[int]]:
    """A model without gradients, and a list with an entry for every look of its tower."""
    model = tiny_model(family).requires_grad_(False)
    looks: list[int] = []
    tower = getattr(model.model, "visual", None) or model.model.vision_tower
    tower.register_forward_hook(lambda *_: looks.append(1))
    return model, looks


def scored(model: nn.Module, batch: dict[str, Tensor], store: ImageStore | None = None) -> Tensor:
    inputs, tokens = share_prefix(batch, image_token_id(model))
    if store is None:
        return pair_scores(model, inputs, tokens).logps
    with store.used(model, image_keys(inputs)):
        return pair_scores(model, inputs, tokens).logps


@pytest.mark.parametrize("family", TOLD_APART)
def test_an_image_is_looked_at_once(family: str, tmp_path: Path) -> None:
    model, looks = frozen(family)
    batch = pair_batch(model, MIXED)
    expected = scored(model, batch)
    assert torch.equal(scored(model, batch, ImageStore(tmp_path, TOWER)), expected)
    assert looks == [1, 1]
    assert torch.equal(scored(model, batch, ImageStore(tmp_path, TOWER)), expected)
    assert looks == [1, 1]


@pytest.mark.parametrize("family", TOLD_APART)
def test_an_image_is_known_in_any_batch(family: str, tmp_path: Path) -> None:
    model, looks = frozen(family)
    store = ImageStore(tmp_path, TOWER)
    two = pair_batch(model, [Pair(9, 3, 5, [(4, 4)]), Pair(7, 2, 4, [(8, 4)])])
    second = second_pair(two)
    expected = scored(model, second)
    if family == "llava_next":  # the processor pads to the most patches that an image of the batch has
        two["pixel_values"] = torch.nn.functional.pad(two["pixel_values"], (0, 0, 0, 0, 0, 0, 0, 2))
    scored(model, two, store)
    looks.clear()
    torch.testing.assert_close(scored(model, second, store), expected, rtol=1e-5, atol=0)
    assert not looks


def second_pair(two: dict[str, Tensor]) -> dict[str, Tensor]:
    """The second of two pairs with an image each, in a batch of its own."""
    rows, pixels = [1, 3], two["pixel_values"]
    alone = {name: values[rows] for name, values in two.items() if name not in ("pixel_values", "position_ids")}
    if "position_ids" in two:
        alone["position_ids"] = two["position_ids"][:, rows]
    if "image_grid_thw" in two:
        images = pixels.split(two["image_grid_thw"].prod(-1).tolist())
        return alone | {"pixel_values": torch.cat([images[row] for row in rows])}
    if "target_sizes" in two:
        images = pixels.split((two["target_sizes"].prod(-1) * pixels.shape[2]).tolist(), -1)
        return alone | {"pixel_values": torch.cat([images[row] for row in rows], -1)}
    return alone | {"pixel_values": pixels[rows]}


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_next"])
def test_what_is_missing_is_made(family: str, tmp_path: Path) -> None:
    model, looks = frozen(family)
    store = ImageStore(tmp_path, TOWER)
    batch = pair_batch(model, MIXED)
    expected = scored(model, batch, store)
    first, *others = sorted(store.folder.glob("*/*.safetensors"))
    assert others
    first.unlink()
    assert torch.equal(scored(model, batch, store), expected)
    assert first.exists()
    assert len(looks) == 2
    scored(model, batch, store)
    assert len(looks) == 2


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_file_is_made_again(
    place: float, cut: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = ImageStore(tmp_path, TOWER)
    features = {"embeddings": torch.randn(5, 8), "deepstack.0": torch.randn(5, 8)}
    store.write("abc", features)
    assert {name: part.tolist() for name, part in (store.read("abc") or {}).items()} == {
        name: part.tolist() for name, part in features.items()
    }
    assert store.count() == 1
    (file,) = store.folder.glob("*/*.safetensors")
    content = bytearray(file.read_bytes())
    at = int(place * len(content))
    content[at] ^= 8
    file.write_bytes(content[:at] if cut else content)
    assert store.read("xyz") is None
    assert not caplog.messages
    assert store.read("abc") is None
    assert caplog.messages == [f"{file} is damaged; it is made again"]
    store.write("abc", features)
    assert store.read("abc") is not None


def test_half_precision_is_kept_as_it_is(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, TOWER)
    store.write("abc", {"embeddings": torch.randn(3, 4).bfloat16()})
    assert (store.read("abc") or {})["embeddings"].dtype == torch.bfloat16


@pytest.mark.parametrize("change", ["pixel", "shape", "dtype"])
def test_other_pixels_are_another_image(change: str) -> None:
    draw = torch.Generator().manual_seed(0)
    pixels, grid = torch.randn(24, 6, generator=draw), torch.tensor([[1, 2, 4], [1, 4, 4]])
    first, second = image_keys({"pixel_values": pixels, "image_grid_thw": grid})
    assert first != second
    changed: dict[str, Any] = {"pixel_values": pixels.clone(), "image_grid_thw": grid.clone()}
    if change == "pixel":
        changed["pixel_values"][3, 5] += 1e-3
    elif change == "shape":
        changed["image_grid_thw"][0] = torch.tensor([1, 4, 2])
    else:
        changed["pixel_values"] = pixels.half()
    other, same = image_keys(changed)
    assert other != first
    assert (same == second) == (change != "dtype")


def test_another_tower_has_another_folder(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, TOWER)
    store.write("abc", {"embeddings": torch.ones(1, 1)})
    assert ImageStore(tmp_path, TOWER).read("abc") is not None
    assert ImageStore(tmp_path, TOWER | {"precision": "bfloat16"}).read("abc") is None


def test_a_batch_without_images_asks_for_none() -> None:
    assert image_keys({"input_ids": torch.ones(2, 3)}) == []
