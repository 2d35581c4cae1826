"""Operations and bytes of a training step that no machine here could run, counted without weights.

    python benchmarks/count.py                                    Qwen2-VL-7B, 256 … 4,096 image tokens, 1 … 10 pairs
    python benchmarks/count.py --model qwen3-vl-8b-instruct       another of src/uni_dpo/plan/models.json
    python benchmarks/count.py --lora 8 --checkpointing           LoRA, gradient checkpointing
    python benchmarks/count.py --gpus 8                           what each of them holds, with ZeRO-2 and ZeRO-3
    python benchmarks/count.py --check                            small shapes: counted against measured on this CPU

A step is the sigmoid loss of all pairs of one question, policy and reference, with a frozen vision tower, in bfloat16:
two sequences per pair in one batch (stock), the same with Liger's norms and gates, and one sequence (ours). GB is the
peak above the weights, gradients included: what is alive at once, without what an allocator wastes. With `--gpus` it is
all that one GPU holds, a question to each: weights, reference, AdamW's moments and float32 copy too, and with ZeRO-3
the largest layer, which is gathered whole. Communication buffers are not counted.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from count_step import VARIANTS, Step, build, count

MODELS = json.loads((Path(__file__).parents[1] / "src/uni_dpo/plan/models.json").read_text(encoding="utf-8"))
CHECKED = (
    {"answers": 2, "image_tokens": 576, "answer": 128},
    {"answers": 3, "image_tokens": 576, "answer": 128, "checkpointing": True},
    {"answers": 4, "image_tokens": 256, "answer": 192},
    {"answers": 5, "image_tokens": 1024, "answer": 256, "questions": 1},
)
MEASURED = {"stock": "ordinary", "ours": "shared_prefix"}


def table(model: str, images: list[int], answers: list[int], words: int, answer: int, **more: Any) -> None:
    """One line per size and variant, in Markdown."""
    print(f"{model}, {words} words and {answer} tokens per answer, {more or 'fully tuned'}\n")
    print("| image tokens | answers | pairs | step | TFLOP | | GB | |")
    print("| ---: | ---: | ---: | --- | ---: | --- | ---: | --- |")
    for image in images:
        for number in answers:
            step = Step(1, number, image, words, answer, **more)
            counted = {variant: count(MODELS[model], step, variant) for variant in VARIANTS}
            flops, size = counted["stock"]
            for variant, (ours, bytes_) in counted.items():
                print(
                    f"| {image:,} | {number} | {step.pairs} | {variant} | {ours / 1e12:,.1f} | ÷ {flops / ours:.1f} "
                    f"| {bytes_ / 1e9:,.1f} | ÷ {size / bytes_:.1f} |",
                    flush=True,
                )


@dataclass(frozen=True)
class Held:
    """Bytes that are there between steps, on one GPU without ZeRO, and the `largest` part that is run at once."""

    weights: int
    reference: int
    gradients: int
    optimizer: int
    largest: int

    @classmethod
    def of(cls, config: dict[str, Any], step: Step, dtype: torch.dtype = torch.bfloat16) -> "Held":
        """Those of a step; LoRA's reference is the policy without its adapter."""
        policy, reference = build(config, dtype, step.lora)
        trained = [weight for weight in policy.parameters() if weight.requires_grad]
        text = policy.model.language_model  # type: ignore[union-attr]
        parts = [*text.layers, text.embed_tokens, policy.lm_head]  # type: ignore[misc, union-attr, list-item]
        return cls(
            weights=_bytes(policy.parameters()),
            reference=0 if step.lora else _bytes(reference.parameters()),
            gradients=_bytes(trained),
            optimizer=12 * sum(weight.numel() for weight in trained),
            largest=max(_bytes(part.parameters()) for part in parts),
        )

    def on_each(self, gpus: int, stage: int, peak: int) -> float:
        """Bytes on each of `gpus` with a ZeRO stage, where a step takes `peak` bytes, its gradients included."""
        models = self.weights + self.reference
        models = models / gpus + self.largest if stage == 3 else models
        gradients = self.gradients / (gpus if stage >= 2 else 1)
        return models + gradients + self.optimizer / (gpus if stage else 1) + max(0, peak - self.gradients)


def _bytes(weights: Iterable[torch.Tensor]) -> int:
    return sum(weight.nbytes for weight in weights)


def zero_table(
    model: str, images: list[int], answers: list[int], words: int, answer: int, gpus: int, **more: Any
) -> None:
    """One line per size and variant: what each of `gpus` holds without ZeRO, with ZeRO-2 and with ZeRO-3."""
    print(f"{model}, {words} words and {answer} tokens per answer, {more or 'fully tuned'}, {gpus} GPUs\n")
    print("| image tokens | answers | pairs | step | GB, no ZeRO | ZeRO-2 | ZeRO-3 | |")
    print("| ---: | ---: | ---: | --- | ---: | ---: | ---: | --- |")
    held = Held.of(MODELS[model], Step(1, 2, 0, words, answer, **more))
    for image in images:
        for number in answers:
            step = Step(1, number, image, words, answer, **more)
            stock = 0.0
            for variant in VARIANTS:
                peak = count(MODELS[model], step, variant)[1]
                none, two, three = (held.on_each(gpus, stage, peak) / 1e9 for stage in (0, 2, 3))
                stock = stock or three
                print(
                    f"| {image:,} | {number} | {step.pairs} | {variant} | {none:,.1f} | {two:,.1f} | {three:,.1f} "
                    f"| ÷ {stock / three:.1f} |",
                    flush=True,
                )


def check() -> bool:
    """Compare with what `pair_step.py` measures on this CPU; whether operations are equal and bytes within 10 %."""
    from pair_step import peak_memory
    from pair_step_models import SHAPES, Setting

    from uni_dpo import logprobs

    logprobs.CHUNK_BYTES = logprobs.CPU_CHUNK_BYTES
    text, vision = SHAPES["small"]
    config = {"model_type": "qwen2_vl", **text, "vocab_size": 32000, "vision_config": vision}
    base = {"shape": "small", "device": "cpu", "dtype": "float32", "vocabulary": 32000, "questions": 1, "prompt": 48}
    base |= {"repeats": 1, "checkpointing": False, "liger": False, "attention": "sdpa"}
    print(
        "| answers | image tokens | answer tokens | checkpointing | step "
        "| GFLOP counted | measured | MB counted | measured | |"
    )
    print("| ---: | ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    close = True
    for changes in CHECKED:
        setting = Setting(**base | changes)
        step = Step(1, setting.answers, setting.image_tokens, 48, setting.answer, checkpointing=setting.checkpointing)
        for variant, measured_as in MEASURED.items():
            flops, size = count(config, step, variant, torch.float32)
            measured = peak_memory(measured_as, setting, warm=True)
            ratio = size / measured["bytes"]
            close &= abs(flops / measured["flops"] - 1) < 1e-5 and abs(ratio - 1) < 0.1
            print(
                f"| {step.answers} | {step.image} | {step.answer} | {step.checkpointing} | {variant} "
                f"| {flops / 1e9:,.3f} | {measured['flops'] / 1e9:,.3f} "
                f"| {size / 1e6:,.0f} | {measured['bytes'] / 1e6:,.0f} | {ratio - 1:+.0%} |",
                flush=True,
            )
    return close


def main() -> None:
    """Parse, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="qwen2-vl-7b-instruct")
    parser.add_argument("--image-tokens", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--answers", type=int, nargs="+", default=[2, 3, 4, 5], help="to one question: 1 … 10 pairs")
    parser.add_argument("--words", type=int, default=48)
    parser.add_argument("--answer", type=int, default=192)
    parser.add_argument("--lora", type=int, default=0, help="rank; 0: fully tuned")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--gpus", type=int, default=0, help="what each of so many holds, with ZeRO")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    start = time.monotonic()
    if options.check:
        sys.exit(0 if check() else "counted and measured differ")
    sizes = (options.model, options.image_tokens, options.answers, options.words, options.answer)
    more = {"lora": options.lora, "checkpointing": options.checkpointing}
    if options.gpus:
        zero_table(*sizes, options.gpus, **more)
    else:
        table(*sizes, **more)
    print(f"\ncounted in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
