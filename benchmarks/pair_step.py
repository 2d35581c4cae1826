"""One training step on image pairs: LlamaFactory's own against the shared-prefix step, side by side.

    python benchmarks/pair_step.py                       a Qwen2-VL of 6 + 6 layers on the CPU
    python benchmarks/pair_step.py --shape qwen2-vl-2b   real shapes in bf16, on a GPU
    python benchmarks/pair_step.py --grow image          256 … 4,096 image tokens
    python benchmarks/pair_step.py --grow answer         16 … 512 answer tokens
    python benchmarks/pair_step.py --grow questions      1, 2, 4 questions in a batch
    python benchmarks/pair_step.py --grow answers --questions 1      2 … 6 ranked answers to a question, all their pairs
    python benchmarks/pair_step.py --answers 5 --micro-batch 1       stock takes a pair at a time, for want of memory

A step is the loss of `pref_loss: sigmoid` (policy and reference) and its gradients, made by the trainer; the
optimizer, which is the same for all, is left out. The variants take turns in one process, each twice, and the second
time counts; the table holds the median. "Image features kept" is a step that finds them on disk, and reads them there.
Peak memory is what a step needs above the weights and images that are there before it, gradients included, measured in
a process per variant on the CPU (resident set) and with PyTorch's counters on a GPU. With `--micro-batch` LlamaFactory
warms with one part, and its memory, for all pairs at once as the others take them, is counted as by `count.py`.
"""

import argparse
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from count_step import Step, count
from counters import flop_counter
from pair_step_models import SHAPES, RandomPairs, Setting, build_models

VARIANTS = {
    "ordinary": "LlamaFactory",
    "shared_prefix": "shared prefix",
    "precomputed": "shared prefix, reference precomputed",
    "kept": "shared prefix, reference precomputed, image features kept",
}
REFERENCE_PRECOMPUTED = ("precomputed", "kept")

GROWTH: dict[str, tuple[str, list[int]]] = {
    "image": ("image_tokens", [256, 576, 1024, 2304, 4096]),
    "answer": ("answer", [16, 64, 192, 512]),
    "questions": ("questions", [1, 2, 4]),
    "answers": ("answers", [2, 3, 4, 5, 6]),
    "vocabulary": ("vocabulary", [32000, 151936]),
}


def build_trainer(variant: str, policy: Any, reference: Any, pairs: RandomPairs, folder: str, **more: Any) -> Any:
    """LlamaFactory's DPO trainer, or ours with `more` arguments, over `pairs`."""
    from llamafactory.hparams import FinetuningArguments
    from llamafactory.train.dpo.trainer import CustomDPOTrainer
    from transformers import Seq2SeqTrainingArguments

    from uni_dpo.llamafactory.arguments import UniDPOFinetuningArguments
    from uni_dpo.llamafactory.reference_cache import LOGPS
    from uni_dpo.llamafactory.run_context import RunContext, running
    from uni_dpo.llamafactory.trainer import LlamaFactoryUniDPOTrainer
    from uni_dpo.shared_prefix.image_store import ImageStore

    common: dict[str, Any] = {
        "model": policy,
        "ref_model": reference,
        "processor": None,
        "tokenizer": None,
        "data_collator": pairs,
        "args": Seq2SeqTrainingArguments(
            folder, report_to=[], use_cpu=not torch.cuda.is_available(), remove_unused_columns=False
        ),
    }
    if variant == "ordinary":
        return CustomDPOTrainer(finetuning_args=FinetuningArguments(stage="dpo", pref_loss="sigmoid"), **common)
    arguments = UniDPOFinetuningArguments(stage="dpo", pref_loss="sigmoid", pair_forward="shared_prefix", **more)
    with running(RunContext(image_store=ImageStore(Path(folder), {}) if variant == "kept" else None)):
        trainer = LlamaFactoryUniDPOTrainer(finetuning_args=arguments, **common)
    if variant in REFERENCE_PRECOMPUTED:
        with torch.no_grad():
            logps = trainer.compute_reference_log_probs(
                policy, trainer._prepare_inputs(trainer.data_collator(pairs.features))
            )
        collate, bits = trainer.data_collator, torch.cat(logps).float().cpu().view(torch.int32)
        trainer.data_collator = lambda features: {**collate(features), LOGPS: bits}
    return trainer


def build_step(variant: str, policy: Any, reference: Any, setting: Setting) -> Callable[..., float]:
    """A function that collates a batch, LlamaFactory's in parts if so set, and makes its loss and gradients."""
    pairs = RandomPairs(policy, setting)
    configs = [model.config.get_text_config() for model in (policy, reference)]
    for config in configs:
        config._attn_implementation = "sdpa"
    folder = tempfile.TemporaryDirectory()
    trainer = build_trainer(variant, policy, reference, pairs, folder.name, pair_attention=setting.attention)
    attention = configs[0]._attn_implementation
    kinds = {module: type(module) for model in (policy, reference) for module in model.modules()}
    at_once = (setting.micro_batch if variant == "ordinary" else 0) or setting.pairs

    def step(*, warming: bool = False, folder: tempfile.TemporaryDirectory[str] = folder) -> float:  # kept as long
        for config in configs:  # the variants share the models, and each attends and multiplies in its own way
            config._attn_implementation = attention
        for module, kind in kinds.items():
            module.__class__ = kind
        policy.zero_grad(set_to_none=True)
        total = 0.0
        for start in range(0, at_once if warming else setting.pairs, at_once):
            features = pairs.features[start : start + at_once]
            inputs = trainer._prepare_inputs(trainer.data_collator(features))
            loss, _ = trainer.get_batch_loss_metrics(policy, inputs)
            loss = loss * (len(features) / setting.pairs)
            loss.backward()
            total += loss.item()
        return total

    return step


def compare(setting: Setting) -> dict[str, dict[str, float]]:
    """Measure every variant: seconds, bytes, and how far loss and gradient norm are from LlamaFactory's."""
    policy, reference = build_models(setting)
    variants = [variant for variant in VARIANTS if setting.image_tokens or variant != "kept"]
    steps = {variant: build_step(variant, policy, reference, setting) for variant in variants}
    results: dict[str, dict[str, float]] = {variant: {} for variant in variants}
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for _ in range(setting.repeats):
        for variant, step in steps.items():
            step(warming=True)  # the first after another variant's finds memory and caches as that one left them
            took, loss = _timed(step, setting.device)
            seconds[variant].append(took)
            results[variant] |= {"loss": loss, "norm": _gradient_norm(policy)}
    del policy, reference, steps, step
    gc.collect()  # the trainers hold themselves, and the models
    for variant, result in results.items():
        counts = variant == "ordinary" and setting.micro_batch
        memory = {"bytes": counted(setting, "stock")[1]} if counts else peak_memory(variant, setting)
        result |= {"seconds": statistics.median(seconds[variant]), **memory}
    return results


def counted(setting: Setting, variant: str) -> tuple[int, int]:
    """Operations of a step of `count_step.py`'s variant, and the bytes that it would take for all pairs at once."""
    text, vision = SHAPES[setting.shape]
    config = {"model_type": "qwen2_vl", **text, "vocab_size": setting.vocabulary, "vision_config": vision}
    step = Step(
        setting.questions, setting.answers, setting.image_tokens, setting.prompt, setting.answer,
        checkpointing=setting.checkpointing,
    )  # fmt: skip
    return count(config, step, variant, getattr(torch, setting.dtype))


def measure_memory(variant: str, setting: Setting, *, warm: bool = False) -> dict[str, int]:
    """Bytes that a step takes beside the weights of both models, and those of them that are the gradients.

    The first step also loads libraries; a `warm` one comes after another, and its FLOPs are counted.
    """
    policy, reference = build_models(setting)
    step = build_step(variant, policy, reference, setting)
    if variant in REFERENCE_PRECOMPUTED:
        del reference
    if warm:
        step()
        policy.zero_grad(set_to_none=True)
        gc.collect()
    if setting.device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far, which a child inherits, is forgotten
        before = _resident_peak()
        step()
        peak = _resident_peak()
    else:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated()
    gradients = sum(p.grad.numel() * p.grad.itemsize for p in policy.parameters() if p.grad is not None)
    counted = {}
    if warm:
        with flop_counter() as flops:
            step()
        counted["flops"] = flops.get_total_flops()
    return {"bytes": peak - before, "gradients": gradients, **counted}


def peak_memory(variant: str, setting: Setting, *, warm: bool = False) -> dict[str, int]:
    """What `measure_memory` finds in a process of its own."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("pair_step.py")),
        "--measure-memory",
        variant,
        "--setting",
        json.dumps(vars(setting)),
    ]
    returned = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back to the system at once
    environment = os.environ | (returned if warm else {})
    done = subprocess.run([*command, *["--warm"] * warm], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _resident_peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _timed(step: Callable[..., float], device: str) -> tuple[float, float]:
    """Seconds of a step, and its loss."""
    if device == "cpu":
        start = time.process_time()
        loss = step()
        return time.process_time() - start, loss
    torch.cuda.synchronize()
    start = time.perf_counter()
    loss = step()
    torch.cuda.synchronize()
    return time.perf_counter() - start, loss


def _gradient_norm(model: torch.nn.Module) -> float:
    return sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5


def print_table(rows: list[tuple[Setting, dict[str, dict[str, float]]]]) -> None:
    """One line per setting and variant, in Markdown."""
    unit = "CPU s" if rows[0][0].device == "cpu" else "s"
    print(
        "| answers | pairs | image tokens | answer tokens | vocabulary "
        f"| step | {unit} | | MB | | loss differs | norm differs |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | --- | ---: | --- | ---: | --- | ---: | ---: |")
    for setting, results in rows:
        base = results["ordinary"]
        for variant, result in results.items():
            at_once = f", {setting.micro_batch} at once" if setting.micro_batch and variant == "ordinary" else ""
            print(
                f"| {setting.answers} | {setting.pairs} | {setting.image_tokens} | {setting.answer} "
                f"| {setting.vocabulary:,} | {VARIANTS[variant]}{at_once} "
                f"| {result['seconds']:.2f} | ÷ {base['seconds'] / result['seconds']:.1f} "
                f"| {result['bytes'] / 1e6:,.0f} | ÷ {base['bytes'] / result['bytes']:.1f} "
                f"| {abs(result['loss'] / base['loss'] - 1):.0e} | {abs(result['norm'] / base['norm'] - 1):.0e} |",
                flush=True,
            )
    print(
        f"\nOf each MB figure, {rows[0][1]['shared_prefix']['gradients'] / 1e6:,.0f} MB are the gradients (first row)."
    )
    if rows[0][0].micro_batch:
        print("LlamaFactory's are counted for all pairs at once.")
    for setting in (setting for setting, _ in rows if setting.image_tokens):
        stock, ours = (counted(setting, variant)[0] for variant in ("stock", "ours"))
        sizes = f"{setting.pairs} pairs, {setting.image_tokens} image and {setting.answer} answer tokens"
        print(f"Operations alone, {sizes}: {stock / 1e9:,.0f} against {ours / 1e9:,.0f} GFLOP, ÷ {stock / ours:.1f}.")


def draw(rows: list[tuple[Setting, dict[str, dict[str, float]]]], size: str, target: Path) -> None:
    """Time and memory of each variant over the size that grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    sizes = [getattr(setting, size) for setting, _ in rows]
    for axis, (name, scale, label) in zip(axes, (("seconds", 1, "seconds"), ("bytes", 1e9, "GB")), strict=True):
        for variant in rows[0][1]:
            values = [results[variant][name] / scale for _, results in rows]
            axis.plot(sizes, values, marker="o", label=VARIANTS[variant])
        axis.set(xlabel=size.replace("_", " "), ylabel=f"{label} per step", ylim=(0, None))
    axes[0].legend(frameon=False)
    figure.savefig(target)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="default: float32 on the CPU, bfloat16 on a GPU")
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--questions", type=int, default=2)
    parser.add_argument("--answers", type=int, default=2, help="to each question; every two make a pair")
    parser.add_argument("--image-tokens", type=int, default=256, help="0: text pairs")
    parser.add_argument("--prompt", type=int, default=48, help="words beside the image")
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--liger", action="store_true", help="with LlamaFactory's enable_liger_kernel")
    parser.add_argument("--attention", choices=("sdpa", "flex_attention"), default="sdpa", help="of shared sequences")
    parser.add_argument("--micro-batch", type=int, default=0, help="pairs that LlamaFactory takes at once; 0: all")
    parser.add_argument("--threads", type=int, default=1, help="more than one counts waiting as CPU time")
    parser.add_argument("--grow", choices=GROWTH, help="several sizes instead of one")
    parser.add_argument("--sizes", type=int, nargs="+", help="those sizes")
    parser.add_argument("--figure", type=Path, help="draw what grows, as .svg or .png")
    parser.add_argument("--measure-memory", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--setting", type=json.loads, help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    torch.set_num_threads(options.pop("threads"))
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    measure, given, warm = (options.pop(name) for name in ("measure_memory", "setting", "warm"))
    grow, wanted, figure = (options.pop(name) for name in ("grow", "sizes", "figure"))
    if measure:
        print(json.dumps(measure_memory(measure, Setting(**given), warm=warm)))
        return
    options["dtype"] = options["dtype"] or ("float32" if options["device"] == "cpu" else "bfloat16")
    setting = Setting(**options)
    name, sizes = GROWTH[grow] if grow else ("questions", [setting.questions])
    sizes = wanted or sizes
    rows = [(row, compare(row)) for row in (replace(setting, **{name: size}) for size in sizes)]
    print_table(rows)
    if figure:
        draw(rows, name, figure)


if __name__ == "__main__":
    main()
