"""The photos of a run as pixels, decoded by the device's code and checked against the run's record."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.preprocess.picture import read_picture
from train.data.dataset import Dataset, Photo, PhotosError, read_verified
from train.run import Run


@dataclass(frozen=True)
class Photos:
    """Decoded photos of one split of a run."""

    pixels: NDArray[np.uint8]  # [n, H, W, 3]
    truth: NDArray[np.int64]  # [n], indices into the classes


def read_photos(
    dataset: Dataset,
    split: str,
    size: tuple[int, int],
    limit: int | None = None,
    step: Callable[[int], None] = lambda done: None,
) -> Photos:
    """At most `limit` photos of a split, decoded to size (H, W). Calls `step` with 1 after each photo.

    Raises PhotosError when the split is empty, or when a photo is missing or differs from the run's record.
    """
    photos = select_photos(_photos_in_dataset(dataset, split), limit)
    if not photos:
        raise PhotosError(
            f"the run has no {split} photos to compare files on; train with more photos, or with a folder "
            f"{split}/ that holds class folders"
        )

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


def uncompressed_top1(run: Run, limit: int | None) -> NDArray[np.int64] | None:
    """The top-1 [n] of the uncompressed model on the test photos that `read_photos` chooses; None if the run
    is not compressed.
    """
    classes, photos = run.uncompressed_classes(), run.dataset.split("test")
    if classes is None:
        return None
    by_photo = dict(zip(photos, classes["test"], strict=True))
    return np.array([by_photo[photo] for photo in select_photos(photos, limit)])


def _photos_in_dataset(dataset: Dataset, split: str) -> tuple[Photo, ...]:
    """The photos of a split. Those of --add count only for a class without others: their folder may be
    gone.
    """
    found = dataset.split(split)
    labels = {photo.label for photo in found if not dataset.is_added(photo)}
    return tuple(photo for photo in found if photo.label not in labels or not dataset.is_added(photo))


def select_photos(photos: tuple[Photo, ...], limit: int | None) -> tuple[Photo, ...]:
    """At most `limit` photos, spread evenly over the classes. Equal photos give an equal choice."""
    if limit is None or limit >= len(photos):
        return photos
    by_label: dict[str, list[Photo]] = defaultdict(list)
    for photo in sorted(photos, key=lambda photo: photo.sha256):
        by_label[photo.label].append(photo)
    ranked = [(rank, photo.label, photo) for group in by_label.values() for rank, photo in enumerate(group)]
    return tuple(photo for _, _, photo in sorted(ranked, key=lambda item: item[:2])[:limit])
