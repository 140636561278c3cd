"""Read photos of a run, checked against the hashes in its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from runtime.preprocess.picture import read_picture
from train.data.dataset import Dataset, Photo, read_verified


def read_photos(dataset: Dataset, photos: Sequence[Photo], size: int) -> NDArray[np.uint8]:
    """The photos [n, size, size, 3]. Raises PhotosError when a photo is missing or has changed, PictureError
    when it cannot be read.
    """
    with ThreadPoolExecutor() as pool:
        return np.stack(
            list(pool.map(lambda photo: read_picture(read_verified(dataset, photo), (size, size)), photos))
        )
