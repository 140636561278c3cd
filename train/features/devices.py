"""The devices that features are computed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras

from train.distributed import cpu_name, list_gpus

CPU_BATCH = 16  # a larger batch is not faster on a CPU, and progress would be printed less often
GPU_BATCH = 1024  # about 13 GB in 16 bits; halved until it fits
# On a GPU float16 is nearer to float32 than bfloat16 is: 0.15 % off on block5_pool, against 1.1 %.
GPU_DTYPE = "mixed_float16"


@dataclass(frozen=True)
class Devices:
    """Devices that hold one replica of the base each, their Keras dtype policy, whether XLA compiles the
    base, and the number of pictures per batch.
    """

    names: tuple[str, ...]
    dtype: str
    jit: bool
    batch: int


def find_devices() -> Devices:
    """Every visible GPU, in 16 bits through XLA; without a GPU, the CPU in float32."""
    return devices_on(list_gpus())


def devices_on(gpus: Sequence[str]) -> Devices:
    """The settings for these GPUs, or for the CPU if there is none."""
    if gpus:
        return Devices(tuple(gpus), GPU_DTYPE, jit=True, batch=GPU_BATCH)
    # On a CPU, TensorFlow is no faster through XLA; JAX without it runs layer by layer.
    return Devices((cpu_name(),), "float32", jit=keras.backend.backend() == "jax", batch=CPU_BATCH)
