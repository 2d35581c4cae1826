"""Which style a checkpoint wants is found by what its template keeps."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.models.prompt import PromptStyle, detect_style, render, style_of, what_is_lost

CONTENT = [
    {"type": "image", "image": "a.png"},
    {"type": "text", "text": "Older or newer?"},
    {"type": "image", "image": "b.png"},
]


@pytest.fixture(scope="module")
def instruct(tiny_qwen2_vl: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_qwen2_vl)


@pytest.fixture(scope="module")
def base(base_checkpoint: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(base_checkpoint)


def test_each_checkpoint_gets_its_own_style(instruct: Any, base: Any) -> None:
    assert detect_style(instruct) is PromptStyle.INSTRUCT
    assert detect_style(base) is PromptStyle.BASE


def test_the_other_style_loses_the_question(instruct: Any, base: Any) -> None:
    assert render(base, CONTENT, PromptStyle.INSTRUCT) == ""
    for processor, style in ((base, PromptStyle.INSTRUCT), (instruct, PromptStyle.BASE)):
        lost = what_is_lost(processor, CONTENT, render(processor, CONTENT, style))
        assert lost == "0 image placeholders for 2 images"


def test_rendered_prompts(instruct: Any, base: Any) -> None:
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert render(base, CONTENT, PromptStyle.BASE) == f"{image}Older or newer?{image}"
    assert render(instruct, CONTENT, PromptStyle.INSTRUCT, "Be brief.") == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{image}Older or newer?{image}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_checkpoint_without_a_template_is_spelt_out(base: Any) -> None:
    bare = SimpleNamespace(
        chat_template=None,
        image_token=base.image_token,
        video_token=base.video_token,
        tokenizer=SimpleNamespace(chat_template=None),
    )
    assert detect_style(bare) is PromptStyle.BASE
    assert render(bare, CONTENT, PromptStyle.BASE) == render(base, CONTENT, PromptStyle.BASE)


def test_a_template_that_loses_everything_is_an_error(instruct: Any) -> None:
    lossy = SimpleNamespace(
        chat_template="{{ messages | length }}",
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        tokenizer=instruct.tokenizer,
    )
    with pytest.raises(UniDPOError, match="loses the question or the images"):
        detect_style(lossy)


def test_a_question_that_is_cut_or_doubles_an_image_is_noticed(instruct: Any) -> None:
    text = [{"type": "text", "text": "What is <|image_pad|>?"}]
    assert what_is_lost(instruct, text, "What is <|image_pad|>?") == "1 image placeholders for 0 images"
    assert what_is_lost(instruct, text[:0], "anything") is None
    assert what_is_lost(instruct, [{"type": "text", "text": "Who?"}], "What?") == "the question is not in the prompt"


def test_a_style_that_is_named_is_taken(instruct: Any) -> None:
    assert style_of(instruct, "auto") is PromptStyle.INSTRUCT
    assert style_of(instruct, "base") is PromptStyle.BASE
