"""Checkpoints of every family on disk: the random models of the shared-prefix tests, a tokenizer, a processor."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = {
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>",
             "<|video_pad|>"),
    "llama3": ("<pad>", "<|begin_of_text|>", "<|eot_id|>", "<image>", "<|start_header_id|>", "<|end_header_id|>",
               "<|eom_id|>"),
    "gemma": ("<pad>", "<bos>", "<end_of_turn>", "<image>", "<start_of_turn>", "<eos>"),
    "gemma3": ("<pad>", "<bos>", "<end_of_turn>", "<image_soft_token>", "<start_of_image>", "<end_of_image>",
               "<start_of_turn>", "<eos>"),
    "gemma4": ("<pad>", "<bos>", "<turn|>", "<|image|>", "<|image>", "<image|>", "<|video|>", "<|audio|>", "<|turn>",
               "<eos>"),
    "glm4v": ("<|endoftext|>", "[gMASK]", "<|user|>", "<|image|>", "<|begin_of_image|>", "<|end_of_image|>",
              "<|video|>", "<sop>", "<|assistant|>", "<|begin_of_video|>", "<|end_of_video|>"),
    "internvl": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
    "minicpmv4_6": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<image>", "</image>",
                    "<|video_pad|>", "<slice>", "</slice>", "<image_id>", "</image_id>"),
    "llava_onevision": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<unk>", "<s>", "<video>"),
    "llama": ("<pad>", "<s>", "</s>", "<image>", "<unk>", "[INST]", "[/INST]"),
}  # fmt: skip
"""Special tokens by id; the ids of padding, begin, end, image and vision are those of the tiny models."""

NAMED_TOKENS = {
    "gemma3": {"image_token": 3, "boi_token": 4, "eoi_token": 5},
    "gemma4": {"image_token": 3, "boi_token": 4, "eoi_token": 5, "audio_token": 7},
    "minicpmv4_6": {
        "image_token": 3,
        "image_start_token": 4,
        "image_end_token": 5,
        "video_token": 6,
        "slice_start_token": 7,
        "slice_end_token": 8,
        "image_id_start_token": 9,
        "image_id_end_token": 10,
    },
    "internvl": {"context_image_token": 3, "start_image_token": 4, "end_image_token": 5, "video_token": 6},
}
"""What a family's processor asks its tokenizer for, by id."""

PATCH, SIDE = 4, 32
"""Pixels of a patch, and of an image's side where the size is the processor's to choose."""


def tiny_models() -> Any:
    """The random models of the shared-prefix tests."""
    name = "shared_prefix_families"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "shared_prefix" / "families.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def byte_tokenizer(special: tuple[str, ...], named: dict[str, int]) -> Any:
    """One token per byte, after the special ones; `named` are some of these by what they are to the processor."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*special, *alphabet))}
    spelling = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    spelling.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelling.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=spelling,
        pad_token=special[0],
        bos_token=special[1],
        eos_token=special[2],
        additional_special_tokens=list(special[3:]),
        **({"extra_special_tokens": {name: special[index] for name, index in named.items()}} if named else {}),
    )


def processor(architecture: str, tokenizer: Any) -> Any:
    """The family's own processor, at the tiny model's patch size."""
    import transformers as t

    if architecture == "llava":
        images = t.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
        more = {"num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
        return t.LlavaProcessor(images, tokenizer, patch_size=PATCH, image_token="<image>", **more)
    if architecture == "llava_next":
        images = t.LlavaNextImageProcessor(
            size={"shortest_edge": 8},
            crop_size={"height": 8, "width": 8},
            image_grid_pinpoints=[[8, 16], [16, 8], [16, 16]],
        )
        more = {"num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
        return t.LlavaNextProcessor(images, tokenizer, patch_size=PATCH, image_token="<image>", **more)
    square = {"height": 16, "width": 16}
    if architecture == "gemma3":
        return t.Gemma3Processor(t.Gemma3ImageProcessor(size=square), tokenizer, image_seq_length=4)
    if architecture == "gemma4":
        cut = {"patch_size": PATCH, "pooling_kernel_size": 2, "max_soft_tokens": 70}
        parts = t.Gemma4AudioFeatureExtractor(), t.Gemma4ImageProcessor(**cut), tokenizer, t.Gemma4VideoProcessor(**cut)
        return t.Gemma4Processor(*parts)
    if architecture == "minicpmv4_6":  # an image is slices of two by two tokens, and the whole of it
        cut = {"patch_size": PATCH, "scale_resolution": SIDE}
        parts = t.MiniCPMV4_6ImageProcessor(**cut), t.MiniCPMV4_6VideoProcessor(**cut), tokenizer
        return t.MiniCPMV4_6Processor(*parts)
    if architecture == "internvl":
        images = t.GotOcr2ImageProcessorFast(size=square, crop_to_patches=False)
        return t.InternVLProcessor(images, tokenizer, t.InternVLVideoProcessor(size=square), image_seq_length=4)
    if architecture == "llava_onevision":
        images = t.LlavaOnevisionImageProcessor(
            size={"height": 8, "width": 8}, image_grid_pinpoints=[[8, 16], [16, 8], [16, 16]]
        )
        video, more = (
            t.LlavaOnevisionVideoProcessor(),
            {"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
        )
        return t.LlavaOnevisionProcessor(images, tokenizer, video, **more)
    if architecture == "glm4v":
        limits = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE * 2}
        images = t.Glm4vImageProcessor(patch_size=PATCH, size=limits)
        return t.Glm4vProcessor(images, tokenizer, t.Glm4vVideoProcessor(patch_size=PATCH))
    images = t.Qwen2VLImageProcessor(patch_size=PATCH, min_pixels=SIDE * SIDE, max_pixels=SIDE * SIDE)
    if architecture in ("qwen3_vl", "qwen3_5"):
        return t.Qwen3VLProcessor(images, tokenizer, t.Qwen3VLVideoProcessor(patch_size=PATCH))
    kind = {"qwen2_vl": t.Qwen2VLProcessor, "qwen2_5_vl": t.Qwen2_5_VLProcessor}[architecture]
    return kind(images, tokenizer, t.Qwen2VLVideoProcessor(patch_size=PATCH))


def write_checkpoint(architecture: str, special_tokens: str, folder: Path) -> Path:
    """Write a random model with tokenizer and, for images, processor; return the folder.

    Args:
        architecture: the configuration's `model_type`.
        special_tokens: a key of `SPECIAL_TOKENS`.
        folder: where to write.
    """
    tokenizer = byte_tokenizer(SPECIAL_TOKENS[special_tokens], NAMED_TOKENS.get(special_tokens, {}))
    model = tiny_models().tiny_model(architecture, vocab_size=len(tokenizer), max_position_embeddings=1024)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if architecture in tiny_models().VISION_FAMILIES:
        processor(architecture, tokenizer).save_pretrained(folder)
    return folder
