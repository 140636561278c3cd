"""Run the frozen base over photos, once each, and keep what it gives on disk.

A feature is block5_pool, [7, 7, 512], kept as float16. Its key is all that it depends on: the photo's bytes,
the picture code, the base's weights, the type computed in, and whether the picture was mirrored. Both recipes
share it.
"""

from __future__ import annotations

import itertools
import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
from numpy.typing import NDArray

from runtime.errors import PictureError, UserError
from runtime.picture import PICTURE_VERSION, read_picture
from train.backbone import INPUT_SIZE, Weights, base_layers, load_weights, picture_input
from train.cache import CacheError
from train.dataset import Dataset, LeftOut, Photo
from train.progress import Progress

FEATURE_SHAPE = (7, 7, 512)
FILE_BYTES = 128 + 2 * 7 * 7 * 512  # of a feature's .npy; a file of another size was cut short
CPU_BATCH = 16  # a CPU gains nothing past this, and progress moves every few seconds
GPU_BATCH = 1024  # about 13 GB in 16 bits; halved until it fits
# Of a GPU: nearer to float32 than bfloat16 is, 0.15 % off on block5_pool against 1.1 %.
GPU_DTYPE = "mixed_float16"
# Activations reach 17,000 on flowers and float16 ends at 65,504: they are kept a sixteenth as large in it.
HEADROOM = 1 / 16

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
class Features:
    """What the base gives for the photos of `dataset`, which lacks those that could not be read."""

    dataset: Dataset
    folder: Path
    mirror: bool

    def of(self, split: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Features float16 [N, 7, 7, 512] and class indices int32 [N] of a split.

        With `mirror`, the training photos' mirror images follow the photos. Raises UserError for a damaged
        cache.
        """
        photos = self.dataset.split(split)
        files = [_file(self.folder, photo, False) for photo in photos]
        labels = [self.dataset.classes.index(photo.label) for photo in photos]
        if self.mirror and split == "train":
            files += [_file(self.folder, photo, True) for photo in photos]
            labels *= 2
        x = np.empty((len(files), *FEATURE_SHAPE), np.float16)
        try:
            for row, file in enumerate(files):
                x[row] = np.load(file)
        except ValueError:  # of the right size, but not what was stored
            raise UserError(f"cache {self.folder}: {file.name} is damaged; remove the folder") from None
        return x, np.array(labels, np.int32)


def extract(
    dataset: Dataset, weights: Weights, cache: Path, *, mirror: bool, devices: Devices | None = None
) -> Features:
    """Compute every feature of `dataset` that `cache` does not hold yet.

    Photos that cannot be read join the data set's left_out. Stopping loses at most the batches being
    computed. Raises CacheError.
    """
    devices = devices or find_devices()
    height, width = INPUT_SIZE
    folder = (
        cache / f"{weights.sha256[:16]}-picture{PICTURE_VERSION}-{height}x{width}-block5_pool-{devices.dtype}"
    )
    missing = [
        (photo, _missing(folder, photo, mirror and photo.split == "train")) for photo in dataset.photos
    ]
    missing = [(photo, sides) for photo, sides in missing if sides]
    cached = len(dataset.photos) - len(missing)
    print(f"features: {cached:,} of {len(dataset.photos):,} photos are in the cache")
    unreadable = _compute(dataset.root, missing, folder, weights, devices) if missing else []
    return Features(dataset.without(unreadable) if unreadable else dataset, folder, mirror)


def find_devices() -> Devices:
    """Every visible GPU, computing in 16 bits through XLA; without one, the CPU in float32."""
    gpus = keras.distribution.list_devices("gpu")
    if gpus:
        return Devices(tuple(gpus), GPU_DTYPE, jit=True, batch=GPU_BATCH)
    return Devices(("cpu:0",), "float32", jit=False, batch=CPU_BATCH)


class Replica:
    """The base on one device, compiled once. Its state is the batch that fits, halved when memory runs
    out.
    """

    def __init__(self, weights: Weights, device: str, devices: Devices) -> None:
        self.device = device
        self.batch = devices.batch
        self.jit = devices.jit
        self.scale = HEADROOM if devices.dtype == "mixed_float16" else 1.0
        with keras.device(device):
            image = picture_input()
            self.model = keras.Model(image, base_layers(image, devices.dtype))
            self.model.compile(jit_compile=devices.jit)
            load_weights(self.model, weights, self.scale)

    def __call__(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Pictures uint8 [N, 224, 224, 3] → block5_pool float16 [N, 7, 7, 512]."""
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
            parts.append((np.asarray(out, np.float32) / self.scale).astype(np.float16))
            start += self.batch
        features: NDArray[Any] = np.concatenate(parts)[: len(pixels)]
        return features


def _compute(
    root: Path, missing: list[tuple[Photo, list[bool]]], folder: Path, weights: Weights, devices: Devices
) -> list[LeftOut]:
    """Decode ahead on threads, compute on every device, store as results come; returns what could not be
    read.
    """
    unreadable: list[LeftOut] = []
    free: queue.SimpleQueue[Replica] = queue.SimpleQueue()
    for device in devices.names:
        free.put(Replica(weights, device, devices))

    def decode(job: tuple[Photo, list[bool]]) -> NDArray[Any] | str:
        path = root / job[0].path
        try:
            return read_picture(path, INPUT_SIZE)
        except PictureError as error:
            return str(error).removeprefix(f"{path}: ")

    def pictures() -> Iterator[tuple[Path, NDArray[Any]]]:
        decoded = _ahead(decoders, decode, missing, 2 * devices.batch)
        for (photo, sides), pixels in zip(missing, decoded, strict=True):
            if isinstance(pixels, str):
                unreadable.append(LeftOut(photo.path, pixels))
                progress.step(len(sides))
                continue
            for mirrored in sides:
                yield _file(folder, photo, mirrored), pixels[:, ::-1] if mirrored else pixels

    def run(batch: tuple[tuple[Path, NDArray[Any]], ...]) -> tuple[list[Path], NDArray[Any]]:
        replica = free.get()
        try:
            return [file for file, _ in batch], replica(np.stack([pixels for _, pixels in batch]))
        finally:
            free.put(replica)

    total = sum(len(sides) for _, sides in missing)
    with (
        Progress("features", total, "pictures") as progress,
        _threads(min(8, os.cpu_count() or 1)) as decoders,
        _threads(len(devices.names)) as computers,
    ):
        for files, features in _ahead(
            computers, run, _batched(pictures(), devices.batch), 2 * len(devices.names)
        ):
            for file, feature in zip(files, features, strict=True):
                _store(file, feature)
            progress.step(len(files))
    return unreadable


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


def _missing(folder: Path, photo: Photo, mirror: bool) -> list[bool]:
    """The sides, plain (False) and mirrored (True), that are wanted and not in the cache."""
    return [side for side in (False, True)[: 1 + mirror] if not _whole(_file(folder, photo, side))]


def _whole(file: Path) -> bool:
    try:
        return file.stat().st_size == FILE_BYTES
    except OSError:  # not there, or the cache is none: storing says so
        return False


def _file(folder: Path, photo: Photo, mirrored: bool) -> Path:
    return folder / photo.sha256[:2] / f"{photo.sha256}{'.mirror' if mirrored else ''}.npy"


def _store(file: Path, feature: NDArray[Any]) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            np.save(stream, feature)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        raise CacheError(file.parent, error) from None


def _out_of_memory(error: Exception) -> bool:
    """By its words: TensorFlow and JAX raise different kinds."""
    text = f"{type(error).__name__} {error}"
    return any(sign in text for sign in ("ResourceExhausted", "RESOURCE_EXHAUSTED", "out of memory", "OOM"))
