"""How a training photo is looked at: as it is (view 0), mirrored (view 1), each further view a random draw.

A draw is a crop that may be mirrored, in other light. It is made once and its features are kept, so that an
epoch costs the layers above the frozen ones alone. What it looks like depends on the photo's bytes and the
view's number, and on no seed: every run shares it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from runtime.preprocess.picture import read_picture

DRAWS_VERSION = 1  # bumped whenever a draw's pixels change, for features are cached by it
CROP_FROM = 280  # pixels a side that crops are cut from: at most about as fine as what they become
CROP_AREA = (0.5, 1.0)  # share of the photo that a crop keeps
CROP_ASPECT = (0.8, 1.25)  # of its width to its height
LIGHT = (0.7, 1.3)  # factors on brightness, contrast and saturation


def augment(
    source: Path | bytes, sha256: str, views: Iterable[int], size: tuple[int, int]
) -> list[NDArray[Any]]:
    """The photo in the file `source`, or of these bytes of one, in each of `views`, uint8 [*size, 3].

    Raises PictureError.
    """
    views = list(views)
    plain = read_picture(source, size) if min(views) < 2 else None
    large = Image.fromarray(read_picture(source, (CROP_FROM, CROP_FROM))) if max(views) >= 2 else None
    found: list[NDArray[Any]] = []
    for view in views:
        if view >= 2 and large is not None:
            found.append(_draw(large, np.random.default_rng([int(sha256[:16], 16), view]), size))
        elif plain is not None:
            found.append(plain[:, ::-1] if view else plain)
    return found


def view_name(view: int) -> str:
    """What tells a view's features from the plain photo's."""
    return ("", ".mirror")[view] if view < 2 else f".draw{DRAWS_VERSION}-{view}"


def _draw(photo: Image.Image, chance: np.random.Generator, size: tuple[int, int]) -> NDArray[Any]:
    side = CROP_FROM * chance.uniform(*CROP_AREA) ** 0.5
    stretch = np.exp(chance.uniform(*np.log(CROP_ASPECT))) ** 0.5
    width, height = min(CROP_FROM, side * stretch), min(CROP_FROM, side / stretch)
    left, top = chance.uniform(0, CROP_FROM - width), chance.uniform(0, CROP_FROM - height)
    box = (left, top, left + width, top + height)
    crop = photo.resize(size[::-1], Image.Resampling.BILINEAR, box)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        crop = change(crop).enhance(chance.uniform(*LIGHT))
    pixels = np.asarray(crop)
    return pixels[:, ::-1] if chance.random() < 0.5 else pixels
