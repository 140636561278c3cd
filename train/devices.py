"""What there is to compute on, and how fine-tuning is spread over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import keras
import numpy as np

from runtime.errors import UserError

PROCESSES = "KERAS_DISTRIBUTION_NUM_PROCESSES"  # Keras's own, as are JOB_ADDRESSES and PROCESS_ID


@dataclass(frozen=True)
class Share:
    """Which rows of a batch this process feeds: every `processes`th from `process` on.

    A batch is cut into `devices` equal parts, over all processes.
    """

    process: int = 0
    processes: int = 1
    devices: int = 1


def gpus() -> list[str]:
    """This process's GPUs that the backend sees, by Keras's names."""
    return _local("gpu") if _on_jax() else list(keras.distribution.list_devices("gpu"))


def cpu() -> str:
    """This process's CPU, by Keras's name."""
    return _local("cpu")[0] if _on_jax() else "cpu:0"


def join(sha256: str) -> Share:
    """Join the other processes of this run, if the environment says that there are any.

    `sha256` is of the photos, which must be the same for all. Raises UserError when they are not, or Keras
    cannot join processes on this backend.
    """
    if os.environ.get(PROCESSES, "1") in ("", "0", "1"):
        return Share()
    if not _on_jax():
        raise UserError(f"{PROCESSES} is set, and Keras joins processes on JAX alone; set KERAS_BACKEND=jax")
    import jax
    from jax.experimental import multihost_utils

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        keras.distribution.initialize()
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the processes of this run cannot be joined ({reason}); check KERAS_DISTRIBUTION_JOB_ADDRESSES, "
            "…_NUM_PROCESSES and …_PROCESS_ID in each"
        ) from None
    mine = np.frombuffer(bytes.fromhex(sha256), np.uint8)
    if (multihost_utils.process_allgather(mine) != mine).any():
        raise UserError("the processes of this run have different photos; give each the same folder")
    return Share(jax.process_index(), jax.process_count(), len(jax.devices()))


@contextmanager
def spread(share: Share) -> Iterator[Share]:
    """A model that is built and trained within is on every GPU: a batch is cut into a part for each.

    TensorFlow's MirroredStrategy, or Keras's DataParallel on JAX; of one device, nothing is spread.
    """
    found = gpus()
    if share.processes == 1 and len(found) < 2:
        yield share
        return
    if _on_jax():
        before = keras.distribution.distribution()
        # Each process feeds its own rows, see Share.
        spreading = keras.distribution.DataParallel(auto_shard_dataset=False)
        keras.distribution.set_distribution(spreading)
        try:
            yield Share(share.process, share.processes, int(spreading.device_mesh.devices.size))
        finally:
            keras.distribution.set_distribution(before)
        return
    import tensorflow

    with tensorflow.distribute.MirroredStrategy(found).scope():
        yield Share(devices=len(found))


def _on_jax() -> bool:
    return bool(keras.backend.backend() == "jax")


def _local(platform: str) -> list[str]:
    """Of several processes JAX numbers all devices, and lists those of others too."""
    import jax

    try:
        return [f"{platform}:{device.id}" for device in jax.local_devices(backend=platform)]
    except RuntimeError:  # JAX's word for none
        return []
