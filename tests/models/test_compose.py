"""A tiny CLIP or SigLIP and a tiny text model as one LLaVA: its parts are theirs, and everything loads it."""

import json
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.models.compose import compose


def write_vision(folder: Path, kind: str, *, whole: bool = False) -> Path:
    """An image encoder of 16 features on 2 × 2 patches; `whole` adds the text half, as published CLIPs have it."""
    import torch
    import transformers as t

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    image = {**sizes, "image_size": 8, "patch_size": 4}
    torch.manual_seed(1)
    if kind == "clip":
        model = t.CLIPVisionModel(t.CLIPVisionConfig(**image))
        if whole:
            text = {**sizes, "vocab_size": 99}
            model = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=image, projection_dim=8))
        images: Any = t.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    else:
        model = t.SiglipVisionModel(t.SiglipVisionConfig(**image))
        images = t.SiglipImageProcessor(size={"height": 8, "width": 8})
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


def write_language(folder: Path, kind: str) -> Path:
    """A text model with 32 features and one token per byte."""
    import torch
    import transformers as t
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ("<|end|>",) if kind == "qwen2" else ("<s>", "</s>")
    spelling = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate((*special, *alphabet))}, merges=[]))
    spelling.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelling.decoder = decoders.ByteLevel()
    tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=spelling, eos_token=special[-1])
    if kind == "llama":
        from tokenizers.processors import TemplateProcessing

        tokenizer.bos_token = "<s>"
        spelling.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=spelling, eos_token="</s>", bos_token="<s>")
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    torch.manual_seed(2)
    model = (
        t.LlamaForCausalLM(t.LlamaConfig(**sizes)) if kind == "llama" else t.Qwen2ForCausalLM(t.Qwen2Config(**sizes))
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("vision", "whole"), [("clip", False), ("clip", True), ("siglip", False)])
@pytest.mark.parametrize("language", ["llama", "qwen2"])
def test_the_parts_are_those_that_were_given(tmp_path: Path, vision: str, whole: bool, language: str) -> None:
    import torch
    import transformers as t
    from PIL import Image

    eyes = write_vision(tmp_path / "vision", vision, whole=whole)
    words = write_language(tmp_path / "language", language)
    made = tmp_path / "llava"
    lines = compose(str(eyes), str(words), made, seed=3)
    assert lines[0] == f"{made}: a LLaVA of 16 vision and 32 language features"
    assert lines[1].startswith("4 tokens per image, ")
    assert lines[2].startswith(f"{16 * 32 + 32 + 32 * 32 + 32:,} new weights in the projector 16 → 32 → 32")

    model = t.AutoModelForImageTextToText.from_pretrained(made)
    assert type(model) is t.LlavaForConditionalGeneration
    processor = t.AutoProcessor.from_pretrained(made)
    tower = (t.CLIPVisionModel if vision == "clip" else t.SiglipVisionModel).from_pretrained(eyes)
    for name, weight in tower.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], weight), name
    text = t.AutoModelForCausalLM.from_pretrained(words)
    old = text.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight[: len(old)], old)
    ids = torch.tensor([[40, 41, 42, 43]])
    assert torch.equal(model(input_ids=ids).logits[..., : len(old)], text(input_ids=ids).logits)

    image = Image.new("RGB", (20, 11), (200, 30, 40))
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
    inputs = processor(text=prompt, images=[image], return_tensors="pt")
    marks = inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert marks.sum() == 4
    # The features in the place of the image: the encoder's last layer but one, without a class token, projected.
    seen = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
    seen = seen[:, 1:] if vision == "clip" else seen
    one, two = model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2
    features = two(torch.nn.functional.gelu(one(seen)))[0]
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    embedded[marks] = features
    expected = model.model.language_model(inputs_embeds=embedded).last_hidden_state
    given = model(**inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)

    compose(str(eyes), str(words), tmp_path / "again", seed=3)
    first, second = ((folder / "model.safetensors").read_bytes() for folder in (made, tmp_path / "again"))
    assert first == second


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("language", ["llama", "qwen2"])
def test_the_template_says_what_llamafactorys_says(tmp_path: Path, language: str, system: str | None) -> None:
    import transformers as t
    from llamafactory.data.template import TEMPLATES

    words = write_language(tmp_path / "language", language)
    compose(str(write_vision(tmp_path / "vision", "clip")), str(words), tmp_path / "llava")
    processor = t.AutoProcessor.from_pretrained(tmp_path / "llava")
    turns = ["<image>What?", "A cat.", "Sure?", "Yes."]
    messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]
    ids = [part for pair in TEMPLATES["llava"].encode_multiturn(processor.tokenizer, messages, system) for part in pair]
    spoken = [{"role": "system", "content": system}] if system else []
    text = processor.apply_chat_template(spoken + messages)
    assert processor.tokenizer(text)["input_ids"] == [token for part in ids for token in part]


def test_what_cannot_be_put_together_is_one_line(tmp_path: Path) -> None:
    eyes, words = write_vision(tmp_path / "vision", "clip"), write_language(tmp_path / "language", "llama")
    with pytest.raises(UniDPOError, match=r"vision: .* model_type 'llama'; name a CLIP or SigLIP model"):
        compose(str(words), str(words), tmp_path / "new")
    with pytest.raises(UniDPOError, match="cannot be loaded"):
        compose(str(eyes), str(eyes), tmp_path / "new")
    with pytest.raises(UniDPOError, match="is there already"):
        compose(str(eyes), str(words), tmp_path)
    with pytest.raises(UniDPOError, match="dtype is 'float23'"):
        compose(str(eyes), str(words), tmp_path / "new", dtype="float23")
    assert not (tmp_path / "new").exists()
    (eyes / "config.json").write_text(json.dumps([]))
    with pytest.raises(UniDPOError, match=r"config\.json holds no JSON object"):
        compose(str(eyes), str(words), tmp_path / "new")


def test_a_composed_llava_is_asked_like_any_other_checkpoint(tmp_path: Path) -> None:
    """Its image processor tells no patch size, and it has no video token."""
    import transformers as t
    from PIL import Image

    from uni_dpo.models.backends import Request, Sampling, make_backend

    eyes = write_vision(tmp_path / "vision", "clip", whole=False)
    folder = tmp_path / "llava"
    compose(str(eyes), str(write_language(tmp_path / "language", "llama")), folder)
    image = tmp_path / "a.png"
    Image.new("RGB", (20, 11), (200, 30, 40)).save(image)
    backend = make_backend({"model": str(folder)})
    request = Request("What?", (str(image),), system="Be brief.")
    (reply,) = backend.generate([request], Sampling(temperature=0.0, max_tokens=4))

    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    ]
    processor = t.AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor(text=text, images=[Image.open(image)], return_tensors="pt")
    model = t.AutoModelForImageTextToText.from_pretrained(folder).eval()
    output = model.generate(**inputs, do_sample=False, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
    assert reply[0].text == processor.tokenizer.decode(output, skip_special_tokens=True).strip()
