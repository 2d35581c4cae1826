"""A training's memory, work, time and disk, from its configuration."""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from uni_dpo.data.ranking import PairChoice
from uni_dpo.plan.counting import StepShape, adapter_weights, step_bytes, step_flops
from uni_dpo.plan.gpus import Gpu
from uni_dpo.plan.workload import PlannedRun, Workload, read_run, read_workload

OPTIMIZER_BYTES = {"adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "adafactor": 0.1, "sgd": 0}
"""Bytes of state per trained number; 8 (two float32 numbers) for all others."""
GIB = 2**30
CONTEXT = 0.9 * GIB
"""What CUDA, its libraries and kernels hold."""
WASTE = 0.06
"""The share of memory that an allocator cannot use."""
EFFICIENCY = (0.25, 0.38, 0.50)
"""The share of an accelerator's products that training reaches: low, likely, high."""


@dataclass(frozen=True)
class Estimate:
    """What a training will take; bytes per accelerator, unless said otherwise.

    Attributes:
        memory: part → bytes.
        total: of all parts, with what an allocator wastes.
        room: bytes of the accelerator.
        largest_batch: pairs per device that would fit; 0 where none does.
        steps: optimizer steps.
        tokens: that go through the policy's language model, of the whole training.
        flops: of the whole training.
        hours: with low, likely and high efficiency, the longest first.
        disk: part → bytes, of the whole training.
        advice: what to change where it does not fit.
        workload: what the data is like.
    """

    memory: dict[str, float]
    total: float
    room: float
    largest_batch: int
    steps: int
    tokens: float
    flops: float
    hours: tuple[float, ...]
    disk: dict[str, float]
    workload: Workload
    advice: list[str]

    @property
    def fits(self) -> bool:
        """Whether it has room."""
        return self.total <= self.room


def estimate(settings: Mapping[str, Any], gpu: Gpu, gpus: int = 1) -> Estimate:
    """Estimate a training by its configuration, on so many accelerators.

    Raises:
        UniDPOError: the model, the data or a setting cannot be read.
    """
    run = read_run(settings)
    choice = PairChoice(settings.get("uni_dpo_pairs", "all"), float(settings.get("uni_dpo_min_gap", 0)))
    work = read_workload(settings, choice)
    room = gpu.memory * GIB
    memory = memory_of(run, work, run.batch, gpus)
    steps = run.max_steps
    if steps <= 0:
        steps = max(1, math.ceil(run.epochs * math.ceil(work.pairs / (run.batch * run.accumulation * gpus))))
    step = step_shape(run, work, run.batch)
    done = steps * run.accumulation * gpus
    flops = done * step_flops(run.model, step)
    if run.precomputed:
        flops += _reference_flops(run, work)
    hours = flops / (gpu.speed * 1e12 * gpus) / 3600
    total = total_of(memory)
    return Estimate(
        memory=memory,
        total=total,
        room=room,
        largest_batch=bisect_right(range(1, 2**16), room, key=lambda size: total_of(memory_of(run, work, size, gpus))),
        steps=steps,
        tokens=done * step.tokens,
        flops=flops,
        hours=tuple(hours / share for share in EFFICIENCY),
        disk=_disk(run, work),
        advice=[] if total <= room else _advice(run, work, gpus, room),
        workload=work,
    )


def step_shape(run: PlannedRun, work: Workload, batch: int, *, longest: bool = False) -> StepShape:
    """Return a step of `batch` pairs: of mean length, or as long as the longest question of the sample makes it."""
    each = work.pairs_of_a_question if run.grouped else 1.0
    questions = batch / each if batch > each else 1.0
    answers = work.answers if run.grouped and batch >= each else min(2.0, work.answers)
    stretch = work.longest / (work.prompt + work.answers * work.answer) if longest else 1.0
    return StepShape(
        questions=questions,
        answers=answers,
        pairs=batch,
        prompt=work.prompt * stretch,
        image=work.image * stretch,
        answer=work.answer * stretch,
        shared=run.shared,
        bytes=2 if run.bf16 else 4,
        reference=run.reference and not run.precomputed,
        full=run.full,
        lora_rank=run.lora_rank,
        checkpointing=run.checkpointing,
        tuned_vision=run.tuned_vision,
    )


def trained_of(run: PlannedRun) -> float:
    """Tell how many numbers are trained."""
    vision = run.model.vision.parameters if run.model.vision and run.tuned_vision else 0
    if not run.full:
        return adapter_weights(run.model.text, run.lora_rank)
    return run.model.text.parameters + vision


def memory_of(run: PlannedRun, work: Workload, batch: int, gpus: int) -> dict[str, float]:
    """Part → bytes per accelerator, with a batch of the longest questions."""
    everything, trained = float(run.model.parameters), trained_of(run)
    half = 2 if run.bf16 else 4
    sharded = run.zero > 0
    # LlamaFactory keeps what it trains in float32, unless told otherwise or DeepSpeed holds that copy
    wide = 4 if run.bf16 and not (run.pure or sharded) else half
    frozen = everything - trained if run.full else everything  # adapters lie beside all weights
    weights = frozen * (half if not run.quantized else run.quantized / 8 * 1.1) + trained * wide
    copies = trained * 2 if run.full and wide > half else 0.0
    reference = everything * half if run.full and run.reference and not run.precomputed else 0.0
    gradients = trained * wide
    optimizer = trained * OPTIMIZER_BYTES.get(run.optimizer, 8 if not run.pure else 4) + (4 * trained if sharded else 0)
    step = step_bytes(run.model, step_shape(run, work, batch, longest=True), gradients)
    sharded_from = {"weights": 3, "reference": 3, "gradients": 2, "optimizer": 1}
    parts = {"weights": weights + copies, "reference": reference, "gradients": gradients, "optimizer": optimizer}
    held = {name: size / (gpus if run.zero >= sharded_from[name] else 1) for name, size in parts.items()}
    if run.offload:
        held["optimizer"] = 0.0
    beyond = {"activations": step.activations, "logits": step.logits, "images": step.images}
    share = max(0.0, step.peak - gradients) / (sum(beyond.values()) or 1.0)  # not all of these are there at the peak
    return {**held, **{name: size * share for name, size in beyond.items()}, "CUDA and kernels": CONTEXT}


def total_of(memory: Mapping[str, float]) -> float:
    """Return all parts, with what an allocator wastes."""
    return sum(memory.values()) * (1 + WASTE)


def _reference_flops(run: PlannedRun, work: Workload) -> float:
    """Once over all answers: a forward pass, which is a quarter of a fully tuned step without checkpointing."""
    step = step_shape(replace(run, grouped=True), work, max(1, round(work.pairs_of_a_question)))
    once = replace(step, reference=True, full=True, checkpointing=False)
    without = replace(once, reference=False)
    each = step_flops(run.model, once) - step_flops(run.model, without)
    return each * work.questions


def _disk(run: PlannedRun, work: Workload) -> dict[str, float]:
    half = 2 if run.bf16 else 4
    saved = run.model.parameters * half if run.full else trained_of(run) * 4
    resume = trained_of(run) * 12 if run.zero else trained_of(run) * OPTIMIZER_BYTES.get(run.optimizer, 8)
    found = {"a checkpoint, with what it resumes from": saved + resume, "the model in the end": saved}
    if run.precomputed:
        found["reference log-probabilities"] = work.questions * work.answers * 44.0
    if run.images_kept and run.model.vision:
        levels = 1 + run.model.vision.deepstack
        found["image features"] = work.images * work.image * run.model.text.hidden * half * levels
    return found


def _advice(run: PlannedRun, work: Workload, gpus: int, room: float) -> list[str]:
    """Single changes that make it fit, or bring it down; the first that suffice alone come first."""
    possible: list[tuple[bool, str, dict[str, Any]]] = [
        (not run.shared, "pair_forward: shared_prefix", {"shared": True}),
        (run.batch > 1, "per_device_train_batch_size: 1, and more accumulation", {"batch": 1}),
        (not run.checkpointing, "disable_gradient_checkpointing: false", {"checkpointing": True}),
        (run.full and run.reference and not run.precomputed, "precompute_ref_log_probs: true", {"precomputed": True}),
        (run.zero < 3 and gpus > 1, "deepspeed: examples/uni_dpo/ds_z3.json", {"zero": 3}),
        (run.full, "optim: adamw_8bit", {"optimizer": "adamw_8bit"}),
        (run.full, "finetuning_type: lora", {"full": False}),
        (not run.full and not run.quantized, "quantization_bit: 4", {"quantized": 4}),
    ]
    changes = {name: changed for applies, name, changed in possible if applies}

    def size_with(changed: Mapping[str, Any]) -> float:
        other = replace(run, **changed)
        return total_of(memory_of(other, work, other.batch, gpus))

    now, sizes = size_with({}), {name: size_with(changed) for name, changed in changes.items()}
    lines = [
        f"{name} → {size / GIB:.1f} GiB{', which fits' if size <= room else ''}"
        for name, size in sizes.items()
        if size < now
    ]
    fits = [line for line in lines if line.endswith("fits")]
    if not fits and changes:
        size = size_with({key: value for changed in changes.values() for key, value in changed.items()})
        end = "fits" if size <= room else "does not fit: take a larger GPU, more of them, or a smaller model"
        lines.append(f"all of these → {size / GIB:.1f} GiB, which {end}")
    return fits + [line for line in lines if line not in fits]


def lines(found: Estimate, gpu: str, gpus: int) -> list[str]:
    """Return what an estimate says, part by part."""
    shown = _parts(found, gpu, gpus)
    width = max(len(name) for _, rows in shown for name, _ in rows)
    return [line for title, rows in shown for line in (title, *(f"  {name:{width}}  {value}" for name, value in rows))]


def _parts(found: Estimate, gpu: str, gpus: int) -> list[tuple[str, list[tuple[str, str]]]]:
    work = found.workload
    no_tokenizer = "characters ÷ 3.5, since there is no tokenizer.json"
    data = [
        ("questions, pairs", f"{work.questions:,}, {work.pairs:,}"),
        ("prompt, of it image tokens", f"{work.prompt:,.0f}, {work.image:,.0f}"),
        ("answers per question, tokens each", f"{work.answers:.1f}, {work.answer:,.0f}"),
        ("tokens counted by", "the tokenizer" if work.counted else no_tokenizer),
    ]
    memory = [(part, f"{size / GIB:.2f} GiB") for part, size in found.memory.items() if size]
    memory += [
        ("in all, with waste", f"{found.total / GIB:.1f} GiB"),
        (f"on {gpu}", f"{found.room / GIB:.0f} GiB: {'fits' if found.fits else 'does not fit'}"),
        ("largest batch per device", f"{found.largest_batch:,} pairs" if found.largest_batch else "none"),
    ]
    longest, likely, shortest = found.hours
    work_rows = [
        ("steps", f"{found.steps:,}"),
        ("tokens", f"{found.tokens:.3g}"),
        ("operations", f"{found.flops:.3g} FLOP"),
        (f"hours on {gpus} × {gpu}", f"{likely:.3g} ({shortest:.3g} … {longest:.3g}, at 50 … 25 % of its products)"),
    ]
    disk = [(part, f"{size / GIB:.2f} GiB") for part, size in found.disk.items()]
    shown = [("Data", data), ("Memory per device", memory), ("Work", work_rows), ("Disk", disk)]
    if found.advice:
        advice = [line.partition(" → ") for line in found.advice]
        shown.append(("To make it fit", [(name, size) for name, _, size in advice]))
    return shown
