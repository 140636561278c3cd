"""Features on disk: one .npy file for each view of a photo."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.common.atomic import atomic_write
from runtime.common.errors import UserError
from train.cache import CacheError
from train.data.augment import view_name
from train.data.dataset import Photo

HEADER_BYTES = 128  # of a .npy file of this kind


@dataclass(frozen=True)
class FeatureStore:
    """Features of files, float16 [N, height, width, channels], loaded when they are indexed."""

    files: tuple[Path, ...]
    feature_shape: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), *self.feature_shape)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> NDArray[np.float16]:
        """The features of these rows. Raises UserError for a missing or damaged file."""
        files = self.files[rows] if isinstance(rows, slice) else [self.files[row] for row in rows]
        features = np.empty((len(files), *self.feature_shape), np.float16)
        try:
            for row, file in enumerate(files):
                features[row] = np.load(file, mmap_mode="r")
        except OSError as error:
            raise CacheError(file, error) from None
        except ValueError:  # the file has the right size but other content
            raise UserError(f"cache {file.parents[1]}: {file.name} is damaged; delete the folder") from None
        return features


def feature_file(folder: Path, photo: Photo, view: int) -> Path:
    return folder / photo.sha256[:2] / f"{photo.sha256}{view_name(view)}.npy"


def feature_file_size(shape: tuple[int, int, int]) -> int:
    """Bytes of a complete file."""
    return HEADER_BYTES + 2 * math.prod(shape)


def is_complete(file: Path, size: int) -> bool:
    """Whether the file exists and was not truncated."""
    try:
        return file.stat().st_size == size
    except OSError:  # also if the cache is no folder, which write_feature reports
        return False


def write_feature(file: Path, feature: NDArray[Any]) -> None:
    """Write a feature file atomically. Raises CacheError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as stream:
            np.save(stream, feature)
    except OSError as error:
        raise CacheError(file.parent, error) from None
