"""What there is to compute on, and how fine-tuning is spread over it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from runtime.common.errors import UserError

PROCESSES_VARIABLE = "KERAS_DISTRIBUTION_NUM_PROCESSES"  # Keras's own, as are JOB_ADDRESSES and PROCESS_ID
# What Gloo, NCCL and JAX's coordination service say when another process is gone.
GONE = ("Gloo", "NCCL", "UNAVAILABLE")


@dataclass(frozen=True)
class ProcessShard:
    """Which rows of a batch this process feeds: every `processes`th from `process` on.

    A batch is cut into `devices` equal parts, over all processes.
    """

    process: int = 0
    processes: int = 1
    devices: int = 1


def list_gpus() -> list[str]:
    """This process's GPUs that the backend sees, by Keras's names."""
    return _local("gpu") if _on_jax() else list(keras.distribution.list_devices("gpu"))


def cpu_name() -> str:
    """This process's CPU, by Keras's name."""
    return _local("cpu")[0] if _on_jax() else "cpu:0"


def init_distributed() -> ProcessShard:
    """Join the other processes of this run, if the environment says that there are any.

    Comes before JAX computes anything. Raises UserError when Keras cannot join processes on this backend.
    """
    if os.environ.get(PROCESSES_VARIABLE, "1") in ("", "0", "1"):
        return ProcessShard()
    if not _on_jax():
        raise UserError(
            f"{PROCESSES_VARIABLE} is set, and Keras joins processes on JAX alone; set KERAS_BACKEND=jax"
        )
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_recoverability", True)
    try:
        keras.distribution.initialize()
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the processes of this run cannot be joined ({reason}); check KERAS_DISTRIBUTION_JOB_ADDRESSES, "
            "…_NUM_PROCESSES and …_PROCESS_ID in each"
        ) from None
    return ProcessShard(jax.process_index(), jax.process_count(), len(jax.devices()))


def check_same_inputs(share: ProcessShard, same: Mapping[str, str]) -> None:
    """Raises UserError, in every process, when what all must have alike, by its name, is not."""
    if share.processes == 1:
        return
    from jax.experimental import multihost_utils

    mine = np.array([list(hashlib.sha256(value.encode()).digest()) for value in same.values()], np.uint8)
    alike = (multihost_utils.process_allgather(mine) == mine).all(axis=(0, 2))
    if not alike.all():
        differ = " and ".join(name for name, is_alike in zip(same, alike, strict=True) if not is_alike)
        shutdown(share)
        raise UserError(f"the processes of this run have different {differ}; give each the same")


def shutdown(share: ProcessShard) -> None:
    """End what `join` began, in every process: from here on each may end when it likes.

    JAX aborts a process that takes leave when the first one, which serves the others, is gone; so that one
    waits until they have. What has connected them so far still does for that.
    """
    if share.processes == 1:
        return
    import jax
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("trained")
    if share.process:
        jax.distributed.shutdown()
    multihost_utils.sync_global_devices("left")


def broadcast_from_first(share: ProcessShard, arrays: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
    """The first process's arrays, in every process: what each computes by itself may differ in its last
    digits, and JAX wants what it copies to all devices to be equal.
    """
    if share.processes == 1 or not arrays:
        return arrays
    from jax.experimental import multihost_utils

    return [np.asarray(array) for array in multihost_utils.broadcast_one_to_all(list(arrays))]


@contextmanager
def distribute(share: ProcessShard) -> Iterator[ProcessShard]:
    """A model that is built and trained within is on every GPU: a batch is cut into a part for each.

    TensorFlow's MirroredStrategy, or Keras's DataParallel on JAX; of one device, nothing is spread.
    """
    found = list_gpus()
    if share.processes == 1 and len(found) < 2:
        yield share
        return
    if _on_jax():
        before = keras.distribution.distribution()
        # Each process feeds its own rows, see Share.
        spreading = keras.distribution.DataParallel(auto_shard_dataset=False)
        keras.distribution.set_distribution(spreading)
        try:
            yield ProcessShard(share.process, share.processes, int(spreading.device_mesh.devices.size))
        except Exception as error:  # by its words, for JAX raises several kinds
            if share.processes == 1 or not any(sign in str(error) for sign in GONE):
                raise
            raise UserError(
                "another process of this run is gone; start all of them again, or one alone with --resume"
            ) from None
        finally:
            keras.distribution.set_distribution(before)
        return
    import tensorflow

    with tensorflow.distribute.MirroredStrategy(found).scope():
        yield ProcessShard(devices=len(found))


def _on_jax() -> bool:
    return bool(keras.backend.backend() == "jax")


def _local(platform: str) -> list[str]:
    """Of several processes JAX numbers all devices, and lists those of others too."""
    import jax

    try:
        return [f"{platform}:{device.id}" for device in jax.local_devices(backend=platform)]
    except RuntimeError:  # JAX's word for none
        return []
