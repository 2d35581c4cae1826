import json
from pathlib import Path

import pytest

from uni_dpo.data.checks.lengths import LengthCounter, kept_lengths, model_limits
from uni_dpo.data.checks.rows import CheckedRow
from uni_dpo.data.image_state import ImageLimits, MediaState
from uni_dpo.data.pair import PreferencePair
from uni_dpo.errors import UniDPOError

SIZES = [
    (28, 28),
    (56, 56),
    (1, 1),
    (640, 480),
    (481, 641),
    (3000, 2000),
    (29, 500),
    (42, 42),
    (2000, 31),
    (768, 768),
    (20_000, 60),
    (60, 20_000),
    (9_000, 1),
]


@pytest.mark.parametrize(
    ("config", "limits"),
    [
        ({"patch_size": 16, "merge_size": 2, "max_pixels": 2048}, ImageLimits(side=32, processor_max=2048)),
        ({"patch_size": {"height": 16, "width": 16}, "size": {"longest_edge": 1024}}, ImageLimits(processor_max=1024)),
        ({"patch_size": None, "size": 224}, ImageLimits()),
    ],
)
def test_the_limits_of_other_families_are_read_too(tmp_path: Path, config: dict, limits: ImageLimits) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert model_limits(tmp_path, ImageLimits()) == limits


@pytest.mark.parametrize("size", SIZES)
def test_image_tokens_are_those_of_llamafactory_and_the_processor(size) -> None:
    """The oracle: LlamaFactory's resizing (its documented pixel limits), then transformers' own smart_resize."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    limits = ImageLimits(max_pixels=512 * 512, min_pixels=32 * 32, processor_min=56 * 56, processor_max=28 * 28 * 300)
    width, height = size
    if width * height > limits.max_pixels:
        factor = (limits.max_pixels / (width * height)) ** 0.5
        width, height = int(width * factor), int(height * factor)
    if width * height < limits.min_pixels:
        factor = (limits.min_pixels / (width * height)) ** 0.5
        width, height = int(width * factor), int(height * factor)
    width, height = max(width, 28), max(height, 28)
    width = height * 180 if width / height > 200 else width
    height = width * 180 if height / width > 200 else height
    rows, columns = smart_resize(height, width, 28, limits.processor_min, limits.processor_max)
    assert limits.tokens(*size) == rows * columns // 28**2


@pytest.mark.parametrize(
    ("prompt", "answer", "cutoff", "kept"),
    [
        (10, 10, 100, (10, 10)),
        (200, 10, 100, (90, 10)),
        (10, 200, 100, (10, 90)),
        (100, 100, 100, (50, 50)),
        (300, 100, 100, (75, 25)),
    ],
)
def test_what_cutoff_len_keeps(prompt, answer, cutoff, kept) -> None:
    assert kept_lengths(prompt, answer, cutoff) == kept


def row(pair: PreferencePair, *sizes: tuple[int, int]) -> CheckedRow:
    return CheckedRow(Path("d"), 0, {}, [pair], [], [MediaState(*size) for size in sizes])


def test_lengths_are_those_of_llamafactory_s_template(tiny_qwen2_vl) -> None:
    """Written out: system and user turn, one image of 56 × 56 pixels (4 tokens between its two marks)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2_vl)
    counter = LengthCounter(tiny_qwen2_vl, cutoff_len=4096)
    counter.add(row(PreferencePair("<image>Which digit?", "A one.", "A very long two.", images=("a.png",)), (56, 56)))
    lengths = counter.result()
    exact = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|>{'<|image_pad|>' * 4}<|vision_end|>Which digit?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert lengths.prompt.mean == len(tokenizer(exact)["input_ids"])
    assert lengths.image.mean == 4
    assert lengths.answer.mean == len(tokenizer("A very long two.<|im_end|>\n")["input_ids"])
    assert (lengths.cut, lengths.image_cut) == (0, 0)


def test_a_limit_within_the_image_is_told_from_one_within_the_text(tiny_qwen2_vl) -> None:
    pair = PreferencePair("<image>" + "word " * 200, "Yes.", "No.", images=("a.png",))
    for cutoff, cut, image_cut in ((2000, 0, 0), (120, 1, 0), (8, 1, 1)):
        counter = LengthCounter(tiny_qwen2_vl, cutoff_len=cutoff)
        counter.add(row(pair, (56, 56)))
        lengths = counter.result()
        assert (lengths.cut, lengths.image_cut) == (cut, image_cut)


def test_a_model_that_is_not_here_is_refused(tmp_path) -> None:
    with pytest.raises(UniDPOError, match="no such folder"):
        LengthCounter(tmp_path / "none", cutoff_len=10)
    with pytest.raises(UniDPOError, match="its tokenizer cannot be loaded"):
        LengthCounter(tmp_path, cutoff_len=10)
