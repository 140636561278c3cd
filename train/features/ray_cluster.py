"""Compute features on a Ray cluster. The driver stores them.

Ray places the tasks, moves photos and features between machines, and restarts a task whose worker died
(Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", 2018). A task runs the same code
as a single machine: train/features/batches.py.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from tqdm import tqdm

from runtime.common.errors import PictureError, UserError
from runtime.common.packages import install_command
from runtime.common.terminal import suppress_native_stderr
from runtime.preprocess.decode import read_bytes
from train.features import ray_task
from train.features.batches import FeatureBatch, PhotoViews, Unreadable
from train.features.devices import Devices, devices_on
from train.features.ray_address import RAY_SETTINGS, RETRIES, ClusterError, cannot_connect
from train.network.vgg import Weights

Shard = list[PhotoViews]

SHARD_BATCHES = 4  # about five seconds of two cores, which the death of a worker costs at most
SHARDS_PER_SLOT = 2  # the running shard, and the next one that starts without a pause
RESULT_TIMEOUT = 10.0  # seconds without a result, after which the driver checks for live nodes


@contextmanager
def connect_to_ray(address: str) -> Iterator[RayCluster]:
    """A connected cluster. Workers get this project's code from here and need its packages.

    Call `check_ray_address` before: Ray waits two minutes for a dead address. Raises ClusterError.
    """
    os.environ.update(RAY_SETTINGS)
    import ray

    packages = [str(Path(importlib.import_module(name).__path__[0])) for name in ("train", "runtime")]
    options: dict[str, Any] = {
        "runtime_env": {
            "py_modules": packages,
            "excludes": ["__pycache__", "released"],
            "env_vars": {"KERAS_BACKEND": keras.backend.backend()},
        },
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if address == "local":
        options["include_dashboard"] = False
    try:
        with suppress_native_stderr():
            ray.init(address, **options)
    except Exception as error:  # Ray raises many types
        raise cannot_connect(address, str(error)) from None
    try:
        cpus, gpus = _resources_per_task(address)
        yield RayCluster(address, devices_on(["gpu:0"] if gpus else []), cpus, gpus)
    finally:
        ray.shutdown()


def _resources_per_task(address: str) -> tuple[int, int]:
    """CPUs and GPUs: one GPU with its share of the CPUs, or else all CPUs of the smallest node."""
    nodes = [node["Resources"] for node in _live_nodes()]
    with_gpu = [resources for resources in nodes if resources.get("GPU", 0) >= 1]
    with_cpu = [resources for resources in nodes if resources.get("CPU", 0) >= 1]
    if with_gpu:
        return min(int(resources.get("CPU", 0) // resources["GPU"]) for resources in with_gpu), 1
    if with_cpu:
        return min(int(resources["CPU"]) for resources in with_cpu), 0
    raise ClusterError(f"--ray {address}: no node offers a CPU or GPU; start a node that does")


@dataclass(frozen=True)
class RayCluster:
    """A cluster that this process is connected to.

    A task computes on `devices` and reserves `cpus` and `gpus` of its node.
    """

    address: str
    devices: Devices
    cpus: int
    gpus: int

    def __str__(self) -> str:
        return f"Ray at {self.address}, {self.slots()} at a time"

    def slots(self) -> int:
        """How many tasks can run at once on the live nodes."""
        count = 0
        for node in _live_nodes():
            resources = node["Resources"]
            fits = [resources.get("CPU", 0) // self.cpus] if self.cpus else []
            fits += [resources.get("GPU", 0) // self.gpus] if self.gpus else []
            count += int(min(fits))
        return count

    def extract_batches(
        self, root: Path, photo_views: list[PhotoViews], weights: Weights, layer: str
    ) -> Generator[FeatureBatch]:
        """The results of `train.features.batches.extract_batches`, in the order in which shards finish.

        Raises ClusterError if the worker of a shard died RETRIES + 1 times, a worker has other package
        versions, a worker raised an error, or no node is left.
        """
        import ray

        # Without max_calls, a worker with a GPU would end after each task and compile the model again.
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_calls=0, max_retries=RETRIES)(
            ray_task.extract_shard
        )
        options = ray_task.TaskOptions(str(root), layer, self.devices, self.cpus, ray_task.package_versions())
        weights_ref = ray.put(weights)
        waiting = deque((shard, False) for shard in self._shards(photo_views))
        nodes = _node_ids()
        running: dict[Any, Shard] = {}
        try:
            while waiting or running:
                while waiting and len(running) < SHARDS_PER_SLOT * max(1, self.slots()):
                    shard, send_bytes = waiting.popleft()
                    photo_bytes, unreadable = _read(root, shard) if send_bytes else ({}, [])
                    if unreadable:
                        yield FeatureBatch([], [], unreadable)
                    if send_bytes:
                        shard = [item for item in shard if item[0].sha256 in photo_bytes]
                    if shard:
                        running[task.remote(options, shard, photo_bytes, weights_ref)] = shard
                if not running:
                    break
                finished, nodes = self._wait(list(running), nodes)
                for ref in finished:
                    batches, missing = self._result(ref, running.pop(ref))
                    if missing:
                        waiting.appendleft((missing, True))
                    yield from batches
        finally:
            for ref in running:
                ray.cancel(ref, force=True)

    def _shards(self, photo_views: list[PhotoViews]) -> Iterator[Shard]:
        """Shards of up to SHARD_BATCHES batches, and smaller ones if some slots would get none."""
        pictures = sum(len(views) for _, views in photo_views)
        batches = pictures // (2 * SHARDS_PER_SLOT * self.devices.batch * max(1, self.slots()))
        size = self.devices.batch * min(SHARD_BATCHES, max(1, batches))
        shard: Shard = []
        for item in photo_views:
            shard.append(item)
            if sum(len(views) for _, views in shard) >= size:
                yield shard
                shard = []
        if shard:
            yield shard

    def _wait(self, running: list[Any], nodes: set[str]) -> tuple[list[Any], set[str]]:
        """The finished tasks and the live nodes; prints dead workers and nodes."""
        import ray

        with redirect_stdout(io.StringIO()) as ray_output:  # a thread of Ray prints long messages
            finished, _ = ray.wait(running, timeout=RESULT_TIMEOUT)
        for retries in re.findall(r"(\d+) retries remaining", ray_output.getvalue()):
            tqdm.write(f"a worker died; its photos are tried again, at most {retries} times", file=sys.stderr)
        # Printed for idle nodes too: Ray also loses finished results that the driver did not fetch yet.
        live = _node_ids()
        if nodes - live:
            tqdm.write("a node died; its shards are computed again on other nodes", file=sys.stderr)
        if not finished and not self.slots():
            raise ClusterError(
                f"--ray {self.address}: no node is left; start one and run the same command again: finished "
                "features are kept"
            )
        return finished, live

    def _result(self, ref: Any, shard: Shard) -> tuple[list[FeatureBatch], Shard]:
        """The result of a finished task. Raises ClusterError."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            result: tuple[list[FeatureBatch], Shard] = ray.get(ref)
            return result
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UserError):
                raise ClusterError(f"--ray {self.address}: {cause}") from None
            reason = f"--ray {self.address}: a worker: {type(cause).__name__}: {_first_sentence(cause)}"
            if isinstance(cause, ImportError):
                raise ClusterError(f"{reason}; on every node, {install_command('train,ray')}") from None
            raise ClusterError(f"{reason}; run without --ray to see the complete error") from None
        except RayError as error:
            raise ClusterError(
                f"--ray {self.address}: {len(shard)} photos, the first {shard[0][0].path}, failed in "
                f"{RETRIES + 1} tries ({type(error).__name__}: {_first_sentence(error)}); finished features "
                "are kept"
            ) from None


def _read(root: Path, shard: Shard) -> tuple[dict[str, bytes], list[Unreadable]]:
    """The photos' bytes by sha256, and the unreadable photos."""
    photo_bytes: dict[str, bytes] = {}
    unreadable: list[Unreadable] = []
    for item in shard:
        path = root / item[0].path
        try:
            photo_bytes[item[0].sha256] = read_bytes(path)
        except PictureError as error:
            unreadable.append((item, str(error).removeprefix(f"{path}: ")))
    return photo_bytes, unreadable


def _live_nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _node_ids() -> set[str]:
    return {node["NodeID"] for node in _live_nodes()}


def _first_sentence(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0].split(". ")[0].rstrip(".")
