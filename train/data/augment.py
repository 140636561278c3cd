"""Augment training photos: view 0 is the photo, view 1 its mirror image, further views are random.

A random view is a crop, maybe mirrored, with changed brightness, contrast and saturation. Its features are
computed once and cached, so an epoch runs only the layers above the frozen ones. A view depends on the
photo's bytes and on the number of the view, not on a seed, so all runs share it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from runtime.preprocess.picture import read_picture
from train.data.dataset import Dataset, Photo, read_verified

RANDOM_VIEW_VERSION = 1  # increase it if the pixels of a random view change: features are cached by it
CROP_SOURCE = 280  # pixels a side of the picture that crops are taken from
CROP_AREA = (0.5, 1.0)  # share of the photo's area
CROP_ASPECT = (0.8, 1.25)  # width / height
COLOR_FACTOR = (0.7, 1.3)  # factor of brightness, contrast and saturation
NEGATIVE_VIEWS = 2  # of a training negative, at most: negatives are many, and an epoch draws some of them


def augment(
    source: Path | bytes, sha256: str, views: Iterable[int], size: tuple[int, int]
) -> list[NDArray[Any]]:
    """Each of `views` of the photo `source`, a file or its bytes: uint8 [*size, 3].

    Raises PictureError.
    """
    views = list(views)
    plain = read_picture(source, size) if min(views) < 2 else None
    large = Image.fromarray(read_picture(source, (CROP_SOURCE, CROP_SOURCE))) if max(views) >= 2 else None
    found: list[NDArray[Any]] = []
    for view in views:
        if view >= 2 and large is not None:
            found.append(_random_view(large, np.random.default_rng([int(sha256[:16], 16), view]), size))
        elif plain is not None:
            found.append(plain[:, ::-1] if view else plain)
    return found


def read_view(dataset: Dataset, photo: Photo, view: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A view of a photo of the data set, uint8 [height, width, 3]. `size` is (height, width).

    Raises PhotosError when the photo is missing or has changed, PictureError when it cannot be read.
    """
    pixels: NDArray[np.uint8] = augment(read_verified(dataset, photo), photo.sha256, [view], size)[0]
    return pixels


def view_count(split: str, views: int) -> int:
    """The number of views of each photo of a split: `views` in train, otherwise 1."""
    return views if split == "train" else 1


def negative_view_count(split: str, views: int) -> int:
    """The number of views of each negative of a split, where training photos have `views`."""
    return view_count(split, min(views, NEGATIVE_VIEWS))


def view_name(view: int) -> str:
    """The suffix of a view in the name of its feature file."""
    return ("", ".mirror")[view] if view < 2 else f".draw{RANDOM_VIEW_VERSION}-{view}"


def _random_view(photo: Image.Image, rng: np.random.Generator, size: tuple[int, int]) -> NDArray[Any]:
    side = CROP_SOURCE * rng.uniform(*CROP_AREA) ** 0.5
    stretch = np.exp(rng.uniform(*np.log(CROP_ASPECT))) ** 0.5
    width, height = min(CROP_SOURCE, side * stretch), min(CROP_SOURCE, side / stretch)
    left, top = rng.uniform(0, CROP_SOURCE - width), rng.uniform(0, CROP_SOURCE - height)
    box = (left, top, left + width, top + height)
    crop = photo.resize(size[::-1], Image.Resampling.BILINEAR, box)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        crop = change(crop).enhance(rng.uniform(*COLOR_FACTOR))
    pixels = np.asarray(crop)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels
