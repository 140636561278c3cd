"""The Ray task: features of one shard of photos, computed on a worker.

The module imports Keras only inside functions: a worker first limits the threads of TensorFlow, and a worker
without Keras reports an ImportError.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.preprocess.picture import PICTURE_VERSION
from train.data.dataset import HashError, file_sha256
from train.features.ray_address import ClusterError

if TYPE_CHECKING:
    from train.features.batches import FeatureBatch, PhotoViews
    from train.features.devices import Devices
    from train.features.replica import Replica
    from train.network.vgg import Weights


@dataclass(frozen=True)
class TaskOptions:
    """The options that all shards share. `versions` are the driver's, and `cpus` bounds the threads."""

    root: str
    layer: str
    devices: Devices
    cpus: int
    versions: Mapping[str, str]


def package_versions() -> dict[str, str]:
    """Versions that pixels and features depend on. Workers get this project's code from the driver."""
    import keras
    import numpy
    import PIL

    from train.data.augment import RANDOM_VIEW_VERSION

    backend = keras.backend.backend()
    return {
        "keras": keras.__version__,
        backend: importlib.import_module(backend).__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "pictures": f"{PICTURE_VERSION}.{RANDOM_VIEW_VERSION}",
    }


def extract_shard(
    options: TaskOptions, shard: list[PhotoViews], photo_bytes: Mapping[str, bytes], weights: Weights
) -> tuple[list[FeatureBatch], list[PhotoViews]]:
    """The feature batches of a shard, and the photos whose bytes the worker needs from the driver: their
    bytes are not in `photo_bytes`, and the worker has no unchanged file at their path.

    Raises ClusterError if the worker has other package versions than the driver.
    """
    # TensorFlow would use all processors of the machine, including those of other tasks.
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(options.cpus)
    root = Path(options.root)
    available: list[PhotoViews] = []
    missing: list[PhotoViews] = []
    for item in shard:
        photo, _ = item
        found = photo.sha256 in photo_bytes or _has_hash(root / photo.path, photo.sha256)
        (available if found else missing).append(item)
    if not available:
        return [], missing

    from train.features.batches import extract_batches

    _check_versions(options.versions)
    return list(extract_batches(root, available, [_replica(options, weights)], photo_bytes)), missing


def _has_hash(file: Path, sha256: str) -> bool:
    with suppress(HashError):
        return file_sha256(file) == sha256
    return False


def _check_versions(driver: Mapping[str, str]) -> None:
    worker = package_versions()
    if differing := driver.items() - worker.items():
        text = ", ".join(f"{name} {worker.get(name)}, not {wanted}" for name, wanted in sorted(differing))
        raise ClusterError(
            f"node {socket.gethostname()} has {text}; features would differ: install the same versions on "
            "every node"
        )


_replicas: dict[tuple[str, str, Devices], Replica] = {}  # of this worker: at most one


def _replica(options: TaskOptions, weights: Weights) -> Replica:
    """The replica that the first task of this worker builds."""
    from train.features.replica import Replica

    key = (weights.sha256, options.layer, options.devices)
    if key not in _replicas:
        _replicas.clear()
        _replicas[key] = Replica(weights, options.devices.names[0], options.devices, options.layer)
    return _replicas[key]
