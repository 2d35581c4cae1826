"""Accelerators that a plan knows: memory, and products per second in half precision, from their makers' data sheets."""

from dataclasses import dataclass

from uni_dpo.errors import UniDPOError, did_you_mean


@dataclass(frozen=True)
class Gpu:
    """One accelerator.

    Attributes:
        memory: GiB.
        speed: TFLOP/s in bfloat16 (float16 where it has none), dense.
    """

    memory: float
    speed: float


GPUS = {
    "4090": Gpu(24, 165),
    "3090": Gpu(24, 71),
    "5090": Gpu(32, 210),
    "a10": Gpu(24, 125),
    "a6000": Gpu(48, 155),
    "a100-40": Gpu(40, 312),
    "a100-80": Gpu(80, 312),
    "b200": Gpu(180, 2250),
    "h100": Gpu(80, 989),
    "h200": Gpu(141, 989),
    "l4": Gpu(24, 121),
    "l40s": Gpu(48, 362),
    "mi300x": Gpu(192, 1307),
    "t4": Gpu(16, 65),
    "v100-32": Gpu(32, 125),
}


def gpu_named(name: str) -> Gpu:
    """Return the accelerator of that name, or raise a UniDPOError that lists those that are known."""
    if name.lower() not in GPUS:
        raise UniDPOError(f"--gpu: none is called {name!r}{did_you_mean(name.lower(), GPUS)}; known: {', '.join(GPUS)}")
    return GPUS[name.lower()]
