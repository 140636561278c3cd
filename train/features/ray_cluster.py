"""Extraction over a Ray cluster: a shard of photos is a Ray task, and what it gives the driver stores.

Ray places the tasks, moves photos and features between machines, and runs a task again whose worker died
(Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", 2018). A task looks at its photos
with the very code that one machine uses: `train.features.look`.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from runtime.common.errors import PictureError, UserError
from runtime.common.terminal import suppress_native_stderr
from runtime.preprocess.decode import read_bytes
from runtime.preprocess.picture import PICTURE_VERSION
from train.data.dataset import file_sha256

if TYPE_CHECKING:
    from train.features.extraction import Devices, FeatureBatch, Job, Replica
    from train.network.vgg import Weights

ANSWER_WITHIN = 15  # seconds; Ray itself goes on asking a dead address for two minutes
RETRIES = 3  # of a shard whose worker died: photos that kill every worker must not be tried for ever
SHARD_BATCHES = 4  # about five seconds of two cores: what a death costs at most
SHARDS_AHEAD = 2  # a worker's: the one it computes, and one that it begins as soon as that is done
LOOK_EVERY = 10.0  # seconds without a result after which it is asked whether there is a worker at all

# Before Ray is imported: no reports to its makers, and none of its own notes: what a user must know we tell.
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_task_oom_retries": str(RETRIES),  # without it a shard that fills the memory is tried for ever
}
PROBE = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"


class ClusterError(UserError):
    """A Ray cluster that cannot be reached, or whose workers cannot do the work."""


def check(address: str) -> None:
    """Raises ClusterError when Ray is not installed or nothing answers at `address`: HOST:PORT of a cluster's
    head, "auto" for the one that this machine is of, or "local", which is started when needed.
    """
    if find_spec("ray") is None:
        raise ClusterError("--ray needs Ray, which is not installed: pip install 'vgg-edge[ray]'")
    if address in ("local", "auto"):
        return
    if not (found := re.fullmatch(r"\[?([^/@\s]+?)\]?:(\d{1,5})", address)):
        raise ClusterError(
            f"--ray {address}: is no address; give HOST:PORT of a Ray cluster's head, or local"
        )
    nothing = "`ray start --head` starts a cluster, --ray local tries it on this machine"
    try:
        socket.create_connection((found[1], int(found[2])), timeout=5).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClusterError(f"--ray {address}: nothing answers there ({reason}); {nothing}") from None
    # Something listens. Whether it is Ray, only Ray can tell, and only a process's end stops it from trying.
    probe = [sys.executable, "-c", PROBE, address]
    try:
        done = subprocess.run(
            probe, env=os.environ | RAY_SETTINGS, capture_output=True, timeout=ANSWER_WITHIN
        )
    except subprocess.TimeoutExpired as error:
        if b"AuthToken" in (error.stderr or b""):
            raise ClusterError(
                f"--ray {address}: wants Ray's token; set RAY_AUTH_MODE=token here as on its head, and copy "
                "the head's ~/.ray/auth_token to each machine"
            ) from None
        raise ClusterError(
            f"--ray {address}: what listens there did not answer as Ray within {ANSWER_WITHIN} s; {nothing}"
        ) from None
    if done.returncode:
        raise _unreachable(address, done.stderr.decode(errors="replace"))


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """`with connected("local") as cluster`: workers get this project's code from here, and need its packages.

    Ray waits two minutes for an address that is dead: `check` comes before. Raises ClusterError.
    """
    os.environ.update(RAY_SETTINGS)
    import keras
    import ray

    from train.features.extraction import devices_on

    packages = [str(Path(importlib.import_module(name).__path__[0])) for name in ("train", "runtime")]
    how: dict[str, Any] = {
        "runtime_env": {
            "py_modules": packages,
            "excludes": ["__pycache__", "released"],
            "env_vars": {"KERAS_BACKEND": keras.backend.backend()},
        },
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if address == "local":
        how["include_dashboard"] = False
    try:
        with suppress_native_stderr():
            ray.init(address, **how)
    except Exception as error:  # of many kinds
        raise _unreachable(address, str(error)) from None
    try:
        nodes = [node["Resources"] for node in _nodes()]
        with_gpu = [has for has in nodes if has.get("GPU", 0) >= 1]
        with_cpu = [has for has in nodes if has.get("CPU", 0) >= 1]
        if with_gpu:
            cpus, gpus = min(int(has.get("CPU", 0) // has["GPU"]) for has in with_gpu), 1
        elif with_cpu:
            cpus, gpus = min(int(has["CPU"]) for has in with_cpu), 0
        else:
            raise ClusterError(f"--ray {address}: no node has a processor to give; start one that has")
        yield Cluster(address, devices_on(["gpu:0"] if gpus else []), cpus, gpus)
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process is connected to.

    `devices` is what a task computes on, `cpus` and `gpus` what it asks of its node: a GPU and its share of
    the processors, or, where there is no GPU, as many processors as the smallest node has.
    """

    address: str
    devices: Devices
    cpus: int
    gpus: int

    def __str__(self) -> str:
        return f"Ray at {self.address}, {self.slots()} at a time"

    def slots(self) -> int:
        """How many tasks can run at once, on the nodes that live."""
        count = 0
        for node in _nodes():
            has = node["Resources"]
            room = [has.get("CPU", 0) // self.cpus] if self.cpus else []
            room += [has.get("GPU", 0) // self.gpus] if self.gpus else []
            count += int(min(room))
        return count

    def extract_batches(  # noqa: C901 (one loop over the states of a shard)
        self, root: Path, jobs: list[Job], weights: Weights, layer: str
    ) -> Generator[FeatureBatch]:
        """What `train.features.look` gives for `jobs`, a shard at a time, as they are done.

        Raises ClusterError: a shard whose worker died RETRIES + 1 times, other versions on a worker than
        here, an error in a worker, no node left.
        """
        import ray

        from train.features.extraction import FeatureBatch

        # Without max_calls a worker with a GPU would end after each task, and compile the model anew.
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_calls=0, max_retries=RETRIES)(
            _see_shard
        )
        plan = _Plan(str(root), layer, self.devices, self.cpus, versions())
        base = ray.put(weights)
        waiting = deque((shard, False) for shard in self._shards(jobs))
        lived = _living()
        running: dict[Any, list[Job]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < SHARDS_AHEAD * max(1, self.slots()):
                    shard, send = waiting.popleft()
                    sent, unreadable = _read(root, shard) if send else ({}, [])
                    if unreadable:
                        yield FeatureBatch([], [], unreadable)
                    shard = [job for job in shard if not send or job[0].sha256 in sent]
                    if not shard:
                        continue
                    running[task.remote(plan, shard, sent, base)] = shard
                if not running:
                    break
                with redirect_stdout(io.StringIO()) as heard:  # a thread of Ray's prints its news at length
                    done, _ = ray.wait(list(running), timeout=LOOK_EVERY)
                for left in re.findall(r"(\d+) retries remaining", heard.getvalue()):
                    again = f"a worker died; its photos are tried again, {left} times at most"
                    tqdm.write(again, file=sys.stderr)
                # Told where no worker was at work, too: Ray has lost results that were not fetched.
                live = _living()
                if lived - live:
                    again = "a node is gone; what it was at or held is computed again on the others"
                    tqdm.write(again, file=sys.stderr)
                lived = live
                if not done and not self.slots():
                    raise ClusterError(
                        f"--ray {self.address}: no node is left to compute on; start one and give the same "
                        "command again: what is done is kept"
                    )
                for ref in done:
                    seen, lacking = self._result(ref, running.pop(ref))
                    if lacking:
                        waiting.appendleft((lacking, True))
                    yield from seen
        finally:
            for ref in running:
                ray.cancel(ref, force=True)

    def _shards(self, jobs: list[Job]) -> Iterator[list[Job]]:
        """A few batches each, and fewer where every slot would not get some."""
        pictures = sum(len(views) for _, views in jobs)
        batches = pictures // (2 * SHARDS_AHEAD * self.devices.batch * max(1, self.slots()))
        size = self.devices.batch * min(SHARD_BATCHES, max(1, batches))
        shard: list[Job] = []
        for job in jobs:
            shard.append(job)
            if sum(len(views) for _, views in shard) >= size:
                yield shard
                shard = []
        if shard:
            yield shard

    def _result(self, ref: Any, shard: list[Job]) -> tuple[list[FeatureBatch], list[Job]]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            result: tuple[list[FeatureBatch], list[Job]] = ray.get(ref)
            return result
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UserError):
                raise ClusterError(f"--ray {self.address}: {cause}") from None
            what = f"--ray {self.address}: a worker: {type(cause).__name__}: {_first_sentence(cause)}"
            if isinstance(cause, ImportError):
                raise ClusterError(f"{what}; pip install 'vgg-edge[train,ray]' on every node") from None
            raise ClusterError(f"{what}; without --ray it is told in full") from None
        except RayError as error:
            photos = f"{len(shard)} photos from {shard[0][0].path} on"
            raise ClusterError(
                f"--ray {self.address}: {photos} could not be computed, nor in {RETRIES} more tries "
                f"({type(error).__name__}: {_first_sentence(error)}); what is done is kept"
            ) from None


@dataclass(frozen=True)
class _Plan:
    """What every shard has in common."""

    root: str
    layer: str
    devices: Devices
    cpus: int
    versions: Mapping[str, str]


def versions() -> dict[str, str]:
    """Of what pixels and features depend on beside the code, which workers get from the driver."""
    import keras
    import numpy
    import PIL

    from train.data.augment import DRAWS_VERSION

    backend = keras.backend.backend()
    return {
        "keras": keras.__version__,
        backend: importlib.import_module(backend).__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "pictures": f"{PICTURE_VERSION}.{DRAWS_VERSION}",
    }


def _see_shard(
    plan: _Plan, jobs: list[Job], sent: Mapping[str, bytes], weights: Weights
) -> tuple[list[FeatureBatch], list[Job]]:
    """The task: what came of jobs, and those whose photo is neither `sent` nor, unchanged, on the path."""
    # TensorFlow would take every processor of the machine, other tasks' too.
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(plan.cpus)
    root = Path(plan.root)
    here: list[Job] = []
    lacking: list[Job] = []
    for job in jobs:
        photo, _ = job
        found = photo.sha256 in sent or file_sha256(root / photo.path) == photo.sha256
        (here if found else lacking).append(job)
    if not here:
        return [], lacking

    from train.features.extraction import extract_batches

    if differing := plan.versions.items() - versions().items():
        theirs = versions()
        what = ", ".join(f"{name} {theirs.get(name)}, not {mine}" for name, mine in sorted(differing))
        raise ClusterError(
            f"node {socket.gethostname()} has {what}; features would differ: install the same on every node"
        )
    return list(extract_batches(root, here, [_replica(plan, weights)], sent)), lacking


_replicas: dict[tuple[str, str, Devices], Replica] = {}  # of this worker: one, built by its first task


def _replica(plan: _Plan, weights: Weights) -> Replica:
    from train.features.extraction import Replica

    key = (weights.sha256, plan.layer, plan.devices)
    if key not in _replicas:
        _replicas.clear()
        _replicas[key] = Replica(weights, plan.devices.names[0], plan.devices, plan.layer)
    return _replicas[key]


def _read(root: Path, jobs: list[Job]) -> tuple[dict[str, bytes], list[tuple[Job, str]]]:
    """The photos' bytes by sha256, and the jobs of those that cannot be read, with the reason."""
    read: dict[str, bytes] = {}
    unreadable: list[tuple[Job, str]] = []
    for job in jobs:
        path = root / job[0].path
        try:
            read[job[0].sha256] = read_bytes(path)
        except PictureError as error:
            unreadable.append((job, str(error).removeprefix(f"{path}: ")))
    return read, unreadable


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _living() -> set[str]:
    return {node["NodeID"] for node in _nodes()}


def _unreachable(address: str, said: str) -> ClusterError:
    last = said.strip().splitlines()[-1:] or ["no reason given"]
    return ClusterError(
        f"--ray {address}: cannot be joined ({last[0]}); this machine must have the head's versions of "
        f"Python and Ray and be a node: `ray start --address {address} --num-cpus 0` does it, without work"
    )


def _first_sentence(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0].split(". ")[0].rstrip(".")
