"""The devices of this machine, and training over several devices or processes."""

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

# Keras reads this variable, and KERAS_DISTRIBUTION_JOB_ADDRESSES and KERAS_DISTRIBUTION_PROCESS_ID.
PROCESSES_VARIABLE = "KERAS_DISTRIBUTION_NUM_PROCESSES"
# Words in the errors of Gloo, NCCL and JAX's coordination service after another process has ended.
LOST_PROCESS_WORDS = ("Gloo", "NCCL", "UNAVAILABLE")


@dataclass(frozen=True)
class ProcessShard:
    """The rows of a batch that this process feeds: every `processes`-th row, starting at row `process`.

    A batch is divided evenly among the `devices` of all processes.
    """

    process: int = 0
    processes: int = 1
    devices: int = 1


def list_gpus() -> list[str]:
    """Keras's names of the GPUs of this process."""
    return _local_devices("gpu") if _on_jax() else list(keras.distribution.list_devices("gpu"))


def cpu_name() -> str:
    """Keras's name of the CPU of this process."""
    return _local_devices("cpu")[0] if _on_jax() else "cpu:0"


def init_distributed() -> ProcessShard:
    """Connect to the other processes of this run, if the environment configures several.

    Call it before JAX computes anything. Raises UserError when the backend is not JAX or connecting fails.
    """
    if os.environ.get(PROCESSES_VARIABLE, "1") in ("", "0", "1"):
        return ProcessShard()
    if not _on_jax():
        raise UserError(
            f"{PROCESSES_VARIABLE} is set, but Keras supports this only on JAX; set KERAS_BACKEND=jax"
        )
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_recoverability", True)
    try:
        keras.distribution.initialize()
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the processes of this run cannot connect ({reason}); check KERAS_DISTRIBUTION_JOB_ADDRESSES, "
            "…_NUM_PROCESSES and …_PROCESS_ID of each process"
        ) from None
    return ProcessShard(jax.process_index(), jax.process_count(), len(jax.devices()))


def check_same_inputs(shard: ProcessShard, inputs: Mapping[str, str]) -> None:
    """Compare `inputs`, texts by name, between all processes.

    Raises UserError in every process when they differ.
    """
    if shard.processes == 1:
        return
    from jax.experimental import multihost_utils

    digests = [list(hashlib.sha256(text.encode()).digest()) for text in inputs.values()]
    own = np.array(digests, np.uint8)
    same = (multihost_utils.process_allgather(own) == own).all(axis=(0, 2))
    if not same.all():
        different = " and ".join(name for name, is_same in zip(inputs, same, strict=True) if not is_same)
        shutdown(shard)
        raise UserError(f"the processes of this run have different {different}; start each with the same")


def shutdown(shard: ProcessShard) -> None:
    """Disconnect from the other processes, so that each of them may end at any time.

    Process 0 serves the others, and JAX aborts a process that disconnects after the server is gone. So
    process 0 waits here until all others have disconnected; the barrier needs no server.
    """
    if shard.processes == 1:
        return
    import jax
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("trained")
    if shard.process:
        jax.distributed.shutdown()
    multihost_utils.sync_global_devices("left")


def broadcast_from_first(shard: ProcessShard, arrays: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
    """The arrays of process 0, in every process.

    Processes may compute slightly different values, and JAX replicates equal values only.
    """
    if shard.processes == 1 or not arrays:
        return arrays
    from jax.experimental import multihost_utils

    return [np.asarray(array) for array in multihost_utils.broadcast_one_to_all(list(arrays))]


@contextmanager
def distribute(shard: ProcessShard) -> Iterator[ProcessShard]:
    """A scope in which built and trained models use every GPU; each GPU computes a part of a batch.

    TensorFlow uses MirroredStrategy, JAX uses Keras's DataParallel. With one device the scope does nothing.
    Yields the shard with the number of devices. Raises UserError when another process ends early.
    """
    gpus = list_gpus()
    if shard.processes == 1 and len(gpus) < 2:
        yield shard
    elif _on_jax():
        with _data_parallel(shard) as parallel:
            yield parallel
    else:
        import tensorflow

        with tensorflow.distribute.MirroredStrategy(gpus).scope():
            yield ProcessShard(devices=len(gpus))


@contextmanager
def _data_parallel(shard: ProcessShard) -> Iterator[ProcessShard]:
    before = keras.distribution.distribution()
    # Not sharded by Keras: each process feeds its own rows, see ProcessShard.
    parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
    keras.distribution.set_distribution(parallel)
    try:
        yield ProcessShard(shard.process, shard.processes, int(parallel.device_mesh.devices.size))
    except Exception as error:  # JAX raises several types; the text tells them apart
        if shard.processes == 1 or not any(word in str(error) for word in LOST_PROCESS_WORDS):
            raise
        raise UserError(
            "another process of this run has ended; start all processes again, or one process with --resume"
        ) from None
    finally:
        keras.distribution.set_distribution(before)


def _on_jax() -> bool:
    return bool(keras.backend.backend() == "jax")


def _local_devices(platform: str) -> list[str]:
    """Names of this process's devices; with several processes Keras lists the devices of all."""
    import jax

    try:
        return [f"{platform}:{device.id}" for device in jax.local_devices(backend=platform)]
    except RuntimeError:  # JAX raises it when the platform has no device
        return []
