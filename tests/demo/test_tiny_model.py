"""The embedded checkpoint is a whole Qwen2-VL."""

from pathlib import Path

from uni_dpo.demo.tiny_model import BASE_TEMPLATE, write_tiny_qwen2_vl


def test_it_loads_and_one_image_is_four_tokens(tiny_qwen2_vl: Path) -> None:
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny_qwen2_vl)
    model = AutoModelForImageTextToText.from_pretrained(tiny_qwen2_vl)
    assert model.config.model_type == "qwen2_vl"
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit?"}]}]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
    inputs = processor(text=[prompt], images=[Image.new("RGB", (28, 28))], return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 4
    assert model(**inputs).logits.shape[-1] == len(processor.tokenizer)


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    one, same, other = (
        (write_tiny_qwen2_vl(tmp_path / name, seed=seed) / "model.safetensors").read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == same != other


def test_the_spread_is_that_of_all_matrices(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(write_tiny_qwen2_vl(tmp_path, spread=0.08) / "model.safetensors")
    for part in ("visual.blocks.0.attn.qkv.weight", "layers.0.mlp.up_proj.weight"):
        found = next(value for name, value in weights.items() if name.endswith(part))
        assert abs(float(found.std()) - 0.08) < 0.002


def test_the_base_template_takes_bare_items_and_loses_role_messages(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(write_tiny_qwen2_vl(tmp_path, template=BASE_TEMPLATE))
    items = [{"type": "image"}, {"type": "text", "text": "Which digit?"}]
    render = processor.apply_chat_template
    assert render(items, tokenize=False) == "<|vision_start|><|image_pad|><|vision_end|>Which digit?"
    assert render([{"role": "user", "content": items}], tokenize=False) == ""
