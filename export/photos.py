"""A run's own photos as pixels: by the device's picture code, and the very ones that the run recorded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.preprocess.picture import read_picture
from train.data.dataset import Dataset, Photo, PhotosError, read_verified


@dataclass(frozen=True)
class Photos:
    """One split of a run, decoded."""

    pixels: NDArray[np.uint8]  # [n, H, W, 3]
    truth: NDArray[np.int64]  # [n], indices into the classes


def read_photos(
    dataset: Dataset,
    split: str,
    size: tuple[int, int],
    limit: int | None = None,
    step: Callable[[int], None] = lambda done: None,
) -> Photos:
    """Decodes the photos of a split, `limit` of them at most, to (H, W). `step` is called with 1 after each.

    Raises PhotosError when the split is empty, or a photo is missing or changed since it was recorded.
    """
    photos = select_photos(dataset.split(split), limit)
    if not photos:
        raise PhotosError(f"the run has no {split} photos, so nothing can be proven: train with some")

    def read(photo: Photo) -> NDArray[np.uint8]:
        pixels = read_picture(read_verified(dataset, photo), size)
        step(1)
        return pixels

    with ThreadPoolExecutor() as pool:
        try:
            pixels = np.stack(list(pool.map(read, photos)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Photos(pixels, np.array([dataset.classes.index(photo.label) for photo in photos], np.int64))


def select_photos(photos: tuple[Photo, ...], limit: int | None) -> tuple[Photo, ...]:
    """At most `limit` photos, evenly over the classes, and always the same: by the order of their hashes."""
    if limit is None or limit >= len(photos):
        return photos
    by_label: dict[str, list[Photo]] = defaultdict(list)
    for photo in sorted(photos, key=lambda photo: photo.sha256):
        by_label[photo.label].append(photo)
    ranked = [(rank, photo.label, photo) for group in by_label.values() for rank, photo in enumerate(group)]
    return tuple(photo for _, _, photo in sorted(ranked, key=lambda item: item[:2])[:limit])
