"""The adapter, as VLMEvalKit's own loop sees it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.digits import QUESTION, Digit
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import Sample
from uni_dpo.models.prompt import prompt_of

IMAGE_TOKENS = 4
"""Of one 56 × 56 image."""


@pytest.fixture(scope="module")
def adapter(kit: str) -> Any:
    from uni_dpo.vlmeval.qwen2_vl import Qwen2VLChat

    return Qwen2VLChat


def asks(digits: list[Digit], question: str = QUESTION) -> list[dict[str, str]]:
    return [*({"type": "image", "value": str(d.image)} for d in digits), {"type": "text", "value": question}]


def by_hand(checkpoint: Path, conversation: list[dict[str, Any]], digits: list[Digit], **generation: Any) -> str:
    """What transformers answers, without any of our code."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    images = [Image.open(digit.image) for digit in digits]
    prompt = processor.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[prompt], images=images, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**inputs, do_sample=False, **generation)
    return str(processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def test_both_kinds_of_checkpoint_are_shown_question_and_images(
    adapter: Any, tiny_qwen2_vl: Path, base_checkpoint: Path, digits: dict
) -> None:
    seen = digits["held_out"][:2]
    for path, style in ((tiny_qwen2_vl, "instruct"), (base_checkpoint, "base")):
        model = adapter(str(path), max_new_tokens=4, lazy=True)
        assert model.style == style
        inputs = model.backend._encode([model.request(asks(seen))])
        tokens = inputs["input_ids"][0].tolist()
        tokenizer = model.processor.tokenizer
        assert tokens.count(tokenizer.convert_tokens_to_ids("<|image_pad|>")) == 2 * IMAGE_TOKENS
        assert tokens.count(tokenizer.convert_tokens_to_ids("<|vision_start|>")) == 2
        question = tokenizer(QUESTION)["input_ids"]
        assert any(tokens[i : i + len(question)] == question for i in range(len(tokens)))
        assert inputs["image_grid_thw"].tolist() == [[1, 4, 4]] * 2


def test_it_answers_what_transformers_answers(
    adapter: Any, tiny_qwen2_vl: Path, base_checkpoint: Path, digits: dict
) -> None:
    items = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    seen = digits["held_out"][:1]
    for path, conversation in ((tiny_qwen2_vl, [{"role": "user", "content": items}]), (base_checkpoint, items)):
        answer = adapter(str(path), max_new_tokens=8, device="cpu").generate(asks(seen))
        assert answer == by_hand(path, conversation, seen, max_new_tokens=8)
        assert answer


def test_the_younger_class_words_questions_its_own_way(kit: str, tiny_qwen2_vl: Path, digits: dict) -> None:
    """As VLMEvalKit's `Qwen3VLChat`, whose pixels are counted by patches of 32."""
    from uni_dpo.vlmeval.qwen2_vl import Qwen2VLChat, Qwen3VLChat

    row = {"question": "Which?", "A": "one", "B": "two", "hint": "Look."}
    image = str(digits["held_out"][0].image)
    said, floor = [], []
    for kind in (Qwen2VLChat, Qwen3VLChat):
        model = kind(str(tiny_qwen2_vl), lazy=True)
        model.set_dump_image(lambda line: [image])
        assert model.use_custom_prompt("MMBench_DEV_EN")
        said.append(model.build_prompt(row, dataset="MMBench_DEV_EN")[-1]["value"])
        floor.append(model.request(asks(digits["held_out"][:1]), "OCRBench").content[0]["min_pixels"])
    assert said[1] == "Hint: Look.\nQuestion: Which?\nOptions:\nA. one\nB. two\nAnswer with the option letter only."
    assert said[0] != said[1]
    assert floor == [78400, 102400]


def test_a_system_prompt_comes_first(adapter: Any, tiny_qwen2_vl: Path, base_checkpoint: Path, digits: dict) -> None:
    for path in (tiny_qwen2_vl, base_checkpoint):
        model = adapter(str(path), system_prompt="Be brief.", lazy=True)
        request = model.request(asks(digits["held_out"][:1]))
        prompt = prompt_of(model.processor, request.items(), model.style, request.system)
        assert 0 <= prompt.index("Be brief.") < prompt.index("<|image_pad|>")


def test_the_wrong_style_is_an_error_and_not_an_empty_prompt(adapter: Any, base_checkpoint: Path, digits: dict) -> None:
    model = adapter(str(base_checkpoint), prompt_style="instruct", lazy=True)
    with pytest.raises(UniDPOError, match=r"prompt style instruct does not suit .*: 0 image placeholders for 1 images"):
        model.request(asks(digits["held_out"][:1]))


def test_vlmevalkits_prompts_and_pixel_limits_are_kept(adapter: Any, tiny_qwen2_vl: Path, digits: dict) -> None:
    message = asks(digits["held_out"][:1])
    image = adapter(str(tiny_qwen2_vl), 3136, 200_000, lazy=True).request(message, "MME").content[0]
    assert (image["min_pixels"], image["max_pixels"]) == (3136, 200_000)
    image = adapter(str(tiny_qwen2_vl), 3136, 200_000, lazy=True).request(message, "OCRBench").content[0]
    assert (image["min_pixels"], image["max_pixels"]) == (78_400, 200_000)
    image = adapter(str(tiny_qwen2_vl), max_pixels=50_000, lazy=True).request(message, "OCRBench").content[0]
    assert (image["min_pixels"], image["max_pixels"]) == (50_000, 50_000)
    model = adapter(str(tiny_qwen2_vl), lazy=True)
    model.set_dump_image(lambda line: [line["image_path"]])
    row = {"question": "Is it even?", "image_path": "x.png"}
    assert model.use_custom_prompt("POPE")
    assert model.build_prompt(row, "POPE")[-1]["value"] == "Is it even? Please answer yes or no."
    assert not model.use_custom_prompt("MME")
    assert not adapter(str(tiny_qwen2_vl), use_custom_prompt=False, lazy=True).use_custom_prompt("POPE")


def test_a_lora_adapter_is_laid_on_its_base(adapter: Any, tiny_qwen2_vl: Path, digits: dict, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(tiny_qwen2_vl, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "lora")
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoProcessor.from_pretrained(tiny_qwen2_vl).save_pretrained(tmp_path / "merged")

    message = asks(digits["held_out"][:1])
    plain = adapter(str(tiny_qwen2_vl), max_new_tokens=8).generate(message)
    merged = adapter(str(tmp_path / "merged"), max_new_tokens=8).generate(message)
    assert merged != plain
    assert adapter(str(tmp_path / "lora"), max_new_tokens=8).generate(message) == merged
    laid = adapter(str(tiny_qwen2_vl), adapter=str(tmp_path / "lora"), max_new_tokens=8)
    assert laid.generate(message) == merged


def _tiny_qwen2_5_vl(tiny: Path, folder: Path) -> Path:
    from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    told = AutoProcessor.from_pretrained(tiny)
    config = Qwen2_5_VLConfig(
        text_config={**_text(told), "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
        vision_config={
            "depth": 2, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 96, "num_heads": 4,
            "window_size": 112, "fullatt_block_indexes": [1],
        },
        **_tokens(told),
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen2_5_VLProcessor(told.image_processor, told.tokenizer, told.video_processor, told.chat_template).save_pretrained(
        folder
    )
    return folder


def _tiny_qwen3_vl(tiny: Path, folder: Path) -> Path:
    from transformers import (
        AutoProcessor,
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )  # fmt: skip

    told = AutoProcessor.from_pretrained(tiny)
    config = Qwen3VLConfig(
        text_config={
            **_text(told), "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        },
        vision_config={
            "depth": 2, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 96, "num_heads": 4,
            "patch_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 64,
        },
        **_tokens(told),
    )  # fmt: skip
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    images = Qwen2VLImageProcessor(patch_size=16, min_pixels=4096, max_pixels=4096)
    Qwen3VLProcessor(images, told.tokenizer, Qwen3VLVideoProcessor(), told.chat_template).save_pretrained(folder)
    return folder


def _tiny_qwen3_5(tiny: Path, folder: Path) -> Path:
    from transformers import AutoProcessor, Qwen3_5Config, Qwen3_5ForConditionalGeneration

    _tiny_qwen3_vl(tiny, folder)  # its processor is the same
    told = AutoProcessor.from_pretrained(tiny)
    config = Qwen3_5Config(
        text_config={
            **_text(told), "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "linear_key_head_dim": 8, "linear_value_head_dim": 8,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "partial_rotary_factor": 1.0,
            },
        },
        vision_config={
            "depth": 2, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 96, "num_heads": 4,
            "patch_size": 16, "num_position_embeddings": 64,
        },
        **_tokens(told),
    )  # fmt: skip
    Qwen3_5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def _text(told: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(told.tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    }  # fmt: skip


def _tokens(told: Any) -> dict[str, int]:
    names = ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start")
    ids = {f"{key}_token_id": told.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names}
    return {**ids, "vision_end_token_id": told.tokenizer.convert_tokens_to_ids("<|vision_end|>")}


@pytest.mark.parametrize("write", [_tiny_qwen2_5_vl, _tiny_qwen3_vl, _tiny_qwen3_5])
def test_its_younger_sisters_are_known_by_their_config(
    write: Callable, adapter: Any, tiny_qwen2_vl: Path, digits: dict, tmp_path: Path
) -> None:
    model = adapter(str(write(tiny_qwen2_vl, tmp_path / "Qwen2-VL-by-name-only")), max_new_tokens=5)
    assert model.checkpoint.family == write.__name__.removeprefix("_tiny_")
    alone = [model.generate(asks(digits["held_out"][i : i + 1])) for i in range(3)]
    assert alone == [one.text for _, one in model.answers([asks(digits["held_out"][i : i + 1]) for i in range(3)])]


def test_a_video_is_shown(adapter: Any, tiny_qwen2_vl: Path, digits: dict, tmp_path: Path) -> None:
    import cv2
    import numpy as np
    from PIL import Image

    clip = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"mp4v"), 4.0, (56, 56))
    for digit in digits["held_out"][:8]:
        writer.write(np.asarray(Image.open(digit.image)))
    writer.release()
    model = adapter(str(tiny_qwen2_vl), max_new_tokens=3)
    message = [{"type": "video", "value": str(clip)}, {"type": "text", "value": "What is counted?"}]
    inputs = model.backend._encode([model.request(message)])
    assert inputs["video_grid_thw"].shape == (1, 3)
    assert isinstance(model.generate(message), str)


def test_draws_depend_on_the_row_and_the_seed_alone(adapter: Any, tiny_qwen2_vl: Path, digits: dict) -> None:
    drawn = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "max_new_tokens": 8}
    messages = [asks(digits["held_out"][:1], question) for question in ("Which?", "Who?", "What?")]
    model = adapter(str(tiny_qwen2_vl), seed=1, **drawn)
    together = [one.text for _, one in model.answers(messages)]
    assert together == [model.generate(message) for message in reversed(messages)][::-1]
    assert together != [one.text for _, one in adapter(str(tiny_qwen2_vl), seed=2, **drawn).answers(messages)]


def test_a_batch_that_does_not_fit_is_lowered(
    adapter: Any, tiny_qwen2_vl: Path, digits: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model = adapter(str(tiny_qwen2_vl), max_new_tokens=4)
    tried: list[int] = []

    def batch(requests: list[Any], sampling: Any) -> list[list[Sample]]:
        tried.append(len(requests))
        if len(requests) > 2:
            raise torch.cuda.OutOfMemoryError("too much")
        return [[Sample(request.content[-1]["text"], 1, finished=True)] for request in requests]

    monkeypatch.setattr(model.backend, "_batch", batch)
    messages = [asks(digits["held_out"][:1], f"Number {i}?") for i in range(5)]
    answers = {place: one.text for place, one in model.answers(messages)}
    assert [f"Number {i}?" in answers[i] for i in range(5)] == [True] * 5
    assert tried == [5, 2, 2, 1], "what did not fit once is not tried again"

    def never(requests: list[Any], sampling: Any) -> list[list[Sample]]:
        raise torch.cuda.OutOfMemoryError("too much")

    monkeypatch.setattr(model.backend, "_batch", never)
    with pytest.raises(UniDPOError, match="one request alone does not fit"):
        model.generate(messages[0])


def test_the_last_box_is_kept_on_demand() -> None:
    from uni_dpo.vlmeval.qwen2_vl import last_boxed

    assert last_boxed(r"so \boxed{1}, no: \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert last_boxed("no box } here") == "no box } here"
    assert last_boxed(r"\boxed{cut") == "cut"


def test_unknown_arguments_and_checkpoints_are_refused(adapter: Any, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    with pytest.raises(UniDPOError, match="max_pixel: unknown setting"):
        adapter(str(tiny_qwen2_vl), max_pixel=1)
    with pytest.raises(UniDPOError, match="there is no such folder here"):
        adapter(str(tmp_path / "gone"))
    with pytest.raises(UniDPOError, match="dtype: one of auto, float32"):
        adapter(str(tiny_qwen2_vl), dtype="float31")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((tiny_qwen2_vl / "config.json").read_text())
    with pytest.raises(UniDPOError, match=r"bare/model.safetensors: the weights are missing"):
        adapter(str(bare))
