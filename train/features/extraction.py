"""Run the frozen base over photos, once a view, and keep what it gives on disk.

A feature is what the last frozen layer gives, block5_pool's [7, 7, 512] unless blocks are fine-tuned, kept
as float16. Its key is all that it depends on: the photo's bytes, the picture code, the base's weights, the
layer, the type computed in, Keras's backend, and the view. Recipes and seeds share it.
"""

from __future__ import annotations

import itertools
import math
import os
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import keras
import numpy as np
from numpy.typing import NDArray

from runtime.common.atomic import atomic_write
from runtime.common.errors import PictureError, UserError
from runtime.common.text import printable
from runtime.preprocess.picture import PICTURE_VERSION
from train.cache import CACHE_LIMIT, CacheError, make_room
from train.data.augment import augment, view_name
from train.data.dataset import Dataset, LeftOut, Photo, read_hashed
from train.distributed import cpu_name, list_gpus
from train.network.vgg import Weights, base_layers, load_weights, picture_input
from train.progress import Progress

if TYPE_CHECKING:
    from train.features.ray_cluster import Cluster

HEADER_BYTES = 128  # of a .npy before its values; a file that is not as long as it must be was cut short
CPU_BATCH = 16  # a CPU gains nothing past this, and progress moves every few seconds
GPU_BATCH = 1024  # about 13 GB in 16 bits; halved until it fits
# Of a GPU: nearer to float32 than bfloat16 is, 0.15 % off on block5_pool against 1.1 %.
GPU_DTYPE = "mixed_float16"
# Activations reach 17,000 on flowers and float16 ends at 65,504: they are kept a sixteenth as large in it.
HEADROOM = 1 / 16
FLOAT16_MAX = float(np.finfo(np.float16).max)

Job = tuple[Photo, list[int]]  # a photo, and which views of it are wanted
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Devices:
    """What to compute on: a replica of the base each, in the Keras policy `dtype`, through XLA or not."""

    names: tuple[str, ...]
    dtype: str
    jit: bool
    batch: int


@dataclass(frozen=True)
class FeatureBatch:
    """Pictures, each a photo and a view, their features, float16 [N, …], and what could not be read, with the
    reasons.
    """

    pictures: list[tuple[Photo, int]]
    features: Sequence[NDArray[Any]] | NDArray[Any]
    unreadable: list[tuple[Job, str]] = field(default_factory=list)


@dataclass(frozen=True)
class FeatureStore:
    """Features on disk, float16 [N, height, width, channels], read as they are asked for."""

    files: tuple[Path, ...]
    each: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), *self.each)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> NDArray[np.float16]:
        """Raises UserError for a damaged cache."""
        files = self.files[rows] if isinstance(rows, slice) else [self.files[row] for row in rows]
        found = np.empty((len(files), *self.each), np.float16)
        try:
            for row, file in enumerate(files):
                found[row] = np.load(file, mmap_mode="r")
        except OSError as error:
            raise CacheError(file, error) from None
        except ValueError:  # of the right size, but not what was stored
            raise UserError(f"cache {file.parents[1]}: {file.name} is damaged; remove the folder") from None
        return found


@dataclass(frozen=True)
class Features:
    """What the base gives for the photos of `dataset`, which lacks those that could not be read."""

    dataset: Dataset
    folder: Path
    shape: tuple[int, int, int]
    views: int

    def of(self, split: str, views: int | None = None) -> tuple[FeatureStore, NDArray[np.int32]]:
        """Features [N, *shape] and class indices int32 [N] of a split.

        Of the training photos there are several views: all photos' first, then all photos' second, and so on.
        """
        photos = self.dataset.split(split)
        count = (views or self.views) if split == "train" else 1
        files = tuple(_file(self.folder, photo, view) for view in range(count) for photo in photos)
        labels = [self.dataset.classes.index(photo.label) for photo in photos] * count
        return FeatureStore(files, self.shape), np.array(labels, np.int32)


def extract(
    dataset: Dataset,
    weights: Weights,
    cache: Path,
    *,
    views: int,
    layer: str = "block5_pool",
    devices: Devices | None = None,
    limit: int = CACHE_LIMIT,
    cluster: Cluster | None = None,
) -> Features:
    """Compute every feature of `dataset` that `cache` does not hold yet; it stays within `limit` bytes.

    `views` of each training photo, see train/views.py, and one of the others. Photos that cannot be read join
    the data set's left_out. Stopping loses at most the batches being computed. Raises CacheError,
    ClusterError, and UserError when the cache would be over its limit.
    """
    devices = cluster.devices if cluster else devices or find_devices()
    work = survey(dataset, weights, cache, views=views, layer=layer, devices=devices)
    make_room(cache, work.files, work.size * work.pictures, limit)
    cached = len(dataset.photos) - len(work.missing)
    print(f"features: {cached:,} of {len(dataset.photos):,} photos are in the cache")
    unreadable: list[LeftOut] = []
    if work.missing:
        unreadable = compute(dataset.root, work.missing, work.folder, weights, layer, devices, cluster)
    shape = weights.output_shape(layer)
    return Features(dataset.without(unreadable) if unreadable else dataset, work.folder, shape, views)


@dataclass(frozen=True)
class Work:
    """What features a run needs: their files, of `size` bytes each, and of which photos views are missing."""

    folder: Path
    layer: str
    size: int
    files: frozenset[Path]
    missing: list[Job]

    @property
    def pictures(self) -> int:
        return sum(len(views) for _, views in self.missing)


def survey(
    dataset: Dataset, weights: Weights, cache: Path, *, views: int, layer: str, devices: Devices
) -> Work:
    """What `extract` will do, given the same."""
    height, width = weights.input_size
    folder = cache / (
        f"{weights.sha256[:16]}-picture{PICTURE_VERSION}-{height}x{width}-{layer}-{devices.dtype}"
        f"-{keras.backend.backend()}"
    )
    size = HEADER_BYTES + 2 * math.prod(weights.output_shape(layer))
    missing: list[Job] = []
    files: set[Path] = set()
    for photo in dataset.photos:
        wanted = {view: _file(folder, photo, view) for view in range(views if photo.split == "train" else 1)}
        files.update(wanted.values())
        lacking = [view for view, file in wanted.items() if not _whole(file, size)]
        if lacking:
            missing.append((photo, lacking))
    return Work(folder, layer, size, frozenset(files), missing)


def find_devices() -> Devices:
    """Every visible GPU, computing in 16 bits through XLA; without one, the CPU in float32."""
    return devices_on(list_gpus())


def devices_on(gpus: Sequence[str]) -> Devices:
    """How to compute on these GPUs, or, where there is none, on the CPU."""
    if gpus:
        return Devices(tuple(gpus), GPU_DTYPE, jit=True, batch=GPU_BATCH)
    # TensorFlow is no faster through XLA on a CPU; without it JAX runs layer by layer.
    return Devices((cpu_name(),), "float32", jit=keras.backend.backend() == "jax", batch=CPU_BATCH)


class Replica:
    """The base on one device, compiled once. Its state is the batch that fits, halved when memory runs
    out.
    """

    def __init__(self, weights: Weights, device: str, devices: Devices, layer: str = "block5_pool") -> None:
        self.device = device
        self.input_size = weights.input_size
        self.batch = devices.batch
        self.jit = devices.jit
        self.scale = HEADROOM if devices.dtype == "mixed_float16" else 1.0
        with keras.device(device):
            image = picture_input(weights.input_size)
            self.model = keras.Model(image, base_layers(image, devices.dtype, layer, weights.widths))
            self.model.compile(jit_compile=devices.jit)
            load_weights(self.model, weights, self.scale)

    def __call__(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Pictures uint8 [N, *input_size, 3] → the layer's output, float16 [N, …]."""
        parts: list[NDArray[Any]] = []
        start = 0
        while start < len(pixels):
            part = pixels[start : start + self.batch]
            if self.jit:  # another shape would be compiled anew
                part = np.pad(part, ((0, self.batch - len(part)), (0, 0), (0, 0), (0, 0)))
            try:
                with keras.device(self.device):
                    out = self.model.predict_on_batch(part)
            except Exception as error:  # each backend has its own kind
                if not _out_of_memory(error) or self.batch == 1:
                    raise
                self.batch //= 2
                continue
            exact = np.asarray(out, np.float32) / self.scale
            parts.append(np.minimum(exact, FLOAT16_MAX).astype(np.float16))
            start += self.batch
        features: NDArray[Any] = np.concatenate(parts)[: len(pixels)]
        return features


def compute(
    root: Path,
    missing: list[Job],
    folder: Path,
    weights: Weights,
    layer: str,
    devices: Devices,
    cluster: Cluster | None = None,
) -> list[LeftOut]:
    """Store results as they come, from `devices` or from `cluster`; returns what could not be read."""
    if cluster:
        results = cluster.extract_batches(root, missing, weights, layer)
    else:
        results = extract_batches(
            root, missing, [Replica(weights, name, devices, layer) for name in devices.names]
        )
    unreadable: list[LeftOut] = []
    total = sum(len(views) for _, views in missing)
    with Progress("features", total, "pictures") as progress, closing(results):
        for seen in results:
            for (photo, view), feature in zip(seen.pictures, seen.features, strict=True):
                _store(_file(folder, photo, view), feature)
            unreadable += [LeftOut(photo.path, printable(reason)) for (photo, _), reason in seen.unreadable]
            progress.step(len(seen.pictures) + sum(len(views) for (_, views), _ in seen.unreadable))
    return unreadable


def extract_batches(
    root: Path, jobs: Iterable[Job], replicas: Sequence[Replica], sent: Mapping[str, bytes] | None = None
) -> Generator[FeatureBatch]:
    """Decode ahead on threads and compute on every replica at once; batches come in the order of `jobs`.

    A photo's file is under `root`, unless its bytes are in `sent`, by their sha256.
    """
    unreadable: list[tuple[Job, str]] = []
    free: queue.SimpleQueue[Replica] = queue.SimpleQueue()
    for replica in replicas:
        free.put(replica)
    size = max(replica.batch for replica in replicas)
    input_size = replicas[0].input_size

    def decode(job: Job) -> list[NDArray[Any]] | str:
        photo, views = job
        try:
            data = read_hashed(root, photo, (sent or {}).get(photo.sha256))
            return augment(data, photo.sha256, views, input_size)
        except PictureError as error:
            return str(error).removeprefix(f"{root / photo.path}: ")

    def pictures() -> Iterator[tuple[Photo, int, NDArray[Any]]]:
        for job, seen in _ahead(decoders, lambda job: (job, decode(job)), jobs, 2 * size):
            if isinstance(seen, str):
                unreadable.append((job, seen))
                continue
            photo, views = job
            for view, pixels in zip(views, seen, strict=True):
                yield photo, view, pixels

    def run(batch: tuple[tuple[Photo, int, NDArray[Any]], ...]) -> FeatureBatch:
        replica = free.get()
        try:
            features = replica(np.stack([pixels for _, _, pixels in batch]))
        finally:
            free.put(replica)
        return FeatureBatch([(photo, view) for photo, view, _ in batch], features)

    with _threads(min(8, os.cpu_count() or 1)) as decoders, _threads(len(replicas)) as computers:
        yield from _ahead(computers, run, _batched(pictures(), size), 2 * len(replicas))
    if unreadable:
        yield FeatureBatch([], [], unreadable)


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], window: int
) -> Iterator[R]:
    """The results of `function` over `items` in order, at most `window` of them under way before they are
    asked for.
    """
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that drops what has not begun when it is left: on Ctrl-C nothing but the batch at hand is
    waited for.
    """
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _batched(items: Iterator[T], size: int) -> Iterator[tuple[T, ...]]:
    while batch := tuple(itertools.islice(items, size)):
        yield batch


def _whole(file: Path, size: int) -> bool:
    try:
        return file.stat().st_size == size
    except OSError:  # not there, or the cache is none: storing says so
        return False


def _file(folder: Path, photo: Photo, view: int) -> Path:
    return folder / photo.sha256[:2] / f"{photo.sha256}{view_name(view)}.npy"


def _store(file: Path, feature: NDArray[Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as stream:
            np.save(stream, feature)
    except OSError as error:
        raise CacheError(file.parent, error) from None


def _out_of_memory(error: Exception) -> bool:
    """By its words: TensorFlow and JAX raise different kinds."""
    text = f"{type(error).__name__} {error}"
    return any(sign in text for sign in ("ResourceExhausted", "RESOURCE_EXHAUSTED", "out of memory", "OOM"))
