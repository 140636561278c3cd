"""Compute features batch by batch: decode photos ahead in threads while the replicas compute."""

from __future__ import annotations

import itertools
import os
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.common.errors import PictureError
from train.data.augment import augment
from train.data.dataset import Photo, read_hashed
from train.features.replica import Replica

PhotoViews = tuple[Photo, list[int]]  # a photo, and the numbers of the views to compute
Unreadable = tuple[PhotoViews, str]  # a photo that cannot be read, and the reason
Picture = tuple[Photo, int, NDArray[Any]]  # one view of a photo, uint8 [height, width, 3]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class FeatureBatch:
    """Pictures, each a photo and a view, with their rows of features float16 [N, values]; and unreadable
    photos.
    """

    pictures: list[tuple[Photo, int]]
    rows: Sequence[NDArray[Any]] | NDArray[Any]
    unreadable: list[Unreadable] = field(default_factory=list)


def extract_batches(
    root: Path,
    photo_views: Iterable[PhotoViews],
    replicas: Sequence[Replica],
    photo_bytes: Mapping[str, bytes] | None = None,
) -> Generator[FeatureBatch]:
    """Feature batches in the order of `photo_views`, computed on all replicas at once.

    The file of a photo is under `root`, unless `photo_bytes` holds its bytes by their sha256.
    """
    unreadable: list[Unreadable] = []
    idle: queue.SimpleQueue[Replica] = queue.SimpleQueue()
    for replica in replicas:
        idle.put(replica)
    size = max(replica.batch for replica in replicas)
    input_size = replicas[0].input_size

    def decode(item: PhotoViews) -> list[NDArray[Any]] | str:
        """The views, or the reason why the photo cannot be read."""
        photo, views = item
        try:
            data = read_hashed(root, photo, (photo_bytes or {}).get(photo.sha256))
            return augment(data, photo.sha256, views, input_size)
        except PictureError as error:
            return str(error).removeprefix(f"{root / photo.path}: ")

    def decoded() -> Iterator[Picture]:
        for item, result in _map_ahead(decoders, lambda item: (item, decode(item)), photo_views, 2 * size):
            if isinstance(result, str):
                unreadable.append((item, result))
                continue
            photo, views = item
            for view, pixels in zip(views, result, strict=True):
                yield photo, view, pixels

    def compute(batch: tuple[Picture, ...]) -> FeatureBatch:
        replica = idle.get()
        try:
            rows = replica(np.stack([pixels for _, _, pixels in batch]))
        finally:
            idle.put(replica)
        return FeatureBatch([(photo, view) for photo, view, _ in batch], rows)

    with _thread_pool(min(8, os.cpu_count() or 1)) as decoders, _thread_pool(len(replicas)) as computers:
        yield from _map_ahead(computers, compute, _batched(decoded(), size), 2 * len(replicas))
    if unreadable:
        yield FeatureBatch([], [], unreadable)


def _map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], window: int
) -> Iterator[R]:
    """The results of `function` over `items` in order. At most `window` items are started ahead."""
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


@contextmanager
def _thread_pool(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that cancels waiting work on exit, so that Ctrl-C waits for the running batch only."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _batched(items: Iterator[T], size: int) -> Iterator[tuple[T, ...]]:
    while batch := tuple(itertools.islice(items, size)):
        yield batch
