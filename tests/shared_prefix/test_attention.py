"""The rule of who sees whom, written out by hand, and SDPA in two calls against one."""

import pytest
import torch
from families import IMAGE, tiny_model

from uni_dpo.shared_prefix.attention import (
    PREFIX_ATTENTION,
    attention_mask,
    mask_for,
    prefix_attention,
    use_attention,
    visibility,
)
from uni_dpo.shared_prefix.families import text_config
from uni_dpo.shared_prefix.layout import ANSWER, PADDING, PREFIX

p, c, r, o = PREFIX, ANSWER, ANSWER + 1, PADDING
SEGMENTS = torch.tensor([[p, p, c, c, c, r, o, o], [p, p, p, c, r, r, r, o]])


def test_no_answer_sees_the_other_and_nothing_sees_padding() -> None:
    assert attention_mask(SEGMENTS)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 0, 0, 1],
    ]


def test_an_image_sees_all_of_itself_whatever_the_window() -> None:
    """The prompt: a word, an image of three tokens, a word; an answer of two tokens; a window of two."""
    model = tiny_model("gemma3")
    segments = torch.tensor([[p, p, p, p, p, c, c]])
    model.config.text_config.sliding_window = 2
    masks = mask_for(model, segments, torch.tensor([[9, IMAGE, IMAGE, IMAGE, 9, 9, 9]]))
    assert masks["full_attention"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 1],
    ]
    assert masks["sliding_attention"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def test_two_images_do_not_see_each_other_both_ways() -> None:
    model = tiny_model("gemma3")
    segments = torch.tensor([[p, p, p, p, p, c]])
    mask = mask_for(model, segments, torch.tensor([[IMAGE, IMAGE, 5, IMAGE, IMAGE, 9]]))["full_attention"][0, 0]
    assert mask[:2].int().tolist() == [[1, 1, 0, 0, 0, 0]] * 2
    assert mask[3:5].int().tolist() == [[1, 1, 1, 1, 1, 0]] * 2


def test_the_mask_of_two_calls_lacks_the_rows_that_are_prompt_in_every_pair() -> None:
    model = tiny_model("qwen2")
    whole = mask_for(model, SEGMENTS, SEGMENTS)
    use_attention(model, "sdpa")
    assert torch.equal(mask_for(model, SEGMENTS, SEGMENTS), whole[:, :, 2:])


def a_question(lengths: list[int], padding: int) -> torch.Tensor:
    """Segments of a prompt and its answers, (1, T)."""
    owners = [PREFIX, *range(ANSWER, ANSWER + len(lengths) - 1), PADDING]
    return torch.tensor(
        [[owner for owner, length in zip(owners, [*lengths, padding], strict=True) for _ in range(length)]]
    )


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("lengths", [[300, 40, 150], [130, 100, 5, 260, 128], [20, 90, 91, 92, 93, 94, 95]], ids=str)
def test_the_blocks_of_flex_attention_are_those_of_the_mask(lengths: list[int], window: int | None) -> None:
    """Kernels skip a block of 128 × 128 in which nothing is seen, and take one whole in which all is.

    Two to six answers behind one prompt, against the mask that SDPA gets, block by block.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    rows = [a_question(lengths, -sum(lengths) % 128), a_question([sum(lengths)], -sum(lengths) % 128)]
    segments = torch.cat(rows)
    length = segments.shape[1]
    found = create_block_mask(visibility(segments, window), 2, None, length, length, device="cpu")
    blocks = attention_mask(segments, window=window).unflatten(2, (-1, 128)).unflatten(4, (-1, 128)).transpose(3, 4)
    partly, wholly = blocks.any(-1).any(-1), blocks.all(-1).all(-1)
    assert torch.equal(found.to_dense().bool(), partly)
    assert found.full_kv_num_blocks is not None
    assert torch.equal(found.full_kv_num_blocks, wholly.sum(-1).int())
    assert float((~partly).float().mean()) > 0.3  # the answers skip one another


def test_two_calls_are_one() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 8, 4, dtype=torch.float64, generator=draw) for _ in range(3))
    mask = attention_mask(SEGMENTS)
    weights = (query @ key.mT / 2).masked_fill(~mask, -torch.inf).softmax(-1)
    found, _ = prefix_attention(torch.nn.Module(), query, key, value, mask[:, :, 2:])
    torch.testing.assert_close(found, (weights @ value).transpose(1, 2))


def test_the_mask_is_kept_once_for_all_layers() -> None:
    """Of what three layers keep for the backward pass, the mask of the answers' rows, (1, 1, 4, 8), is one tensor."""
    model = tiny_model("qwen2")
    use_attention(model, "sdpa")
    segments = torch.tensor([[PREFIX] * 4 + [ANSWER] * 2 + [ANSWER + 1] * 2], dtype=torch.int16)
    kept: dict[int, tuple[int, ...]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tuple(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(input_ids=torch.arange(20, 28)[None], attention_mask=mask_for(model, segments, segments), use_cache=False)
    assert len(model.model.layers) == 3
    assert list(kept.values()).count((1, 1, 4, 8)) == 1


def test_what_is_no_shared_sequence_is_attended_as_before() -> None:
    model = tiny_model("llama").eval()
    ids = torch.arange(20, 32).view(2, 6)
    padding = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        before = [model(ids).logits, model(ids, attention_mask=padding).logits]
        use_attention(model, "sdpa")
        after = [model(ids).logits, model(ids, attention_mask=padding).logits]
    assert model.config._attn_implementation == PREFIX_ATTENTION
    assert all(torch.equal(*both) for both in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("family", "loaded", "wanted", "used"),
    [
        ("qwen2_vl", "eager", "sdpa", "eager"),
        ("qwen2_vl", "sdpa", "flex_attention", "flex_attention"),
        ("qwen2_vl", "flash_attention_2", "sdpa", PREFIX_ATTENTION),
        ("llava", "flash_attention_2", "sdpa", PREFIX_ATTENTION),
        ("qwen2_vl", "flash_attention_2", "flex_attention", "flex_attention"),
        ("qwen2", "flash_attention_2", "sdpa", "flash_attention_2"),
        ("qwen2", "flash_attention_2", "flex_attention", "flex_attention"),
    ],
)
def test_what_attends_within_shared_sequences(family: str, loaded: str, wanted: str, used: str) -> None:
    model = tiny_model(family)
    text_config(model)._attn_implementation = loaded
    use_attention(model, wanted)
    assert text_config(model)._attn_implementation == used
    if family == "qwen2_vl":
        assert model.model.visual.config._attn_implementation == "sdpa"
