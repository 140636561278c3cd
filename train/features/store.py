"""Features on disk: one .npy file for each view of a photo.

A file holds one row of float16 values: the output of a layer, then the channel means of the pooling layers up
to it. Both are computed, verified and evicted together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.common.atomic import atomic_write
from runtime.common.errors import UserError
from train.cache import CacheError
from train.data.augment import view_name
from train.data.dataset import Photo
from train.network.vgg import POOLS, Weights

HEADER_BYTES = 128  # of a .npy file of this kind


@dataclass(frozen=True)
class FeatureLayout:
    """The values in a row: the features, shaped [height, width, channels], then for each pooling layer the
    means of its `widths` channels.
    """

    shape: tuple[int, int, int]
    widths: tuple[int, ...]

    @property
    def feature_values(self) -> int:
        return math.prod(self.shape)

    @property
    def values(self) -> int:
        return self.feature_values + sum(self.widths)

    @property
    def file_size(self) -> int:
        """Bytes of a complete file."""
        return HEADER_BYTES + 2 * self.values

    def features(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The features [N, height, width, channels] in rows [N, values]."""
        return rows[:, : self.feature_values].reshape(-1, *self.shape)

    def channel_means(self, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """The channel means [N, W] of each pooling layer in rows [N, values]."""
        return np.split(rows[:, self.feature_values :], np.cumsum(self.widths)[:-1], axis=1)


def feature_layout(weights: Weights, layer: str) -> FeatureLayout:
    """The layout of the rows for the output of the pooling layer `layer`."""
    pools = POOLS[: POOLS.index(layer) + 1]
    return FeatureLayout(weights.output_shape(layer), tuple(weights.output_shape(pool)[2] for pool in pools))


@dataclass(frozen=True)
class FeatureStore:
    """Features of files, float16 [N, height, width, channels], loaded when they are indexed."""

    files: tuple[Path, ...]
    layout: FeatureLayout

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), *self.layout.shape)

    def __len__(self) -> int:
        return len(self.files)

    def __add__(self, other: FeatureStore) -> FeatureStore:
        return FeatureStore(self.files + other.files, self.layout)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> NDArray[np.float16]:
        """The features of these rows. Raises UserError for a missing or damaged file."""
        files = self.files[rows] if isinstance(rows, slice) else [self.files[row] for row in rows]
        return self.layout.features(self._read(files, slice(0, self.layout.feature_values)))

    def channel_means(self) -> list[NDArray[np.float16]]:
        """The channel means [N, W] of each pooling layer, of all files. Raises UserError as `__getitem__`."""
        means = self._read(self.files, slice(self.layout.feature_values, None))
        return replace(self.layout, shape=(0, 0, 0)).channel_means(means)

    def _read(self, files: Sequence[Path], columns: slice) -> NDArray[np.float16]:
        """These columns of the files' rows. Mapping a file reads only the pages that hold them."""
        read = np.empty((len(files), len(range(self.layout.values)[columns])), np.float16)
        try:
            for row, file in enumerate(files):
                read[row] = np.load(file, mmap_mode="r")[columns]
        except FileNotFoundError:
            raise UserError(
                f"cache {file}: was deleted during this run; the same command with --resume continues"
            ) from None
        except OSError as error:
            raise CacheError(file, error) from None
        except ValueError:  # the file has the right size but other content
            raise UserError(
                f"cache {file}: is damaged; delete this file, then the same command with --resume continues"
            ) from None
        return read


def feature_file(folder: Path, photo: Photo, view: int) -> Path:
    """The path of a view's features, named by the photo's sha256, in one of 256 folders."""
    return folder / photo.sha256[:2] / f"{photo.sha256}{view_name(view)}.npy"


def is_complete(file: Path, size: int) -> bool:
    """Whether the file exists and was not truncated."""
    try:
        return file.stat().st_size == size
    except OSError:  # also if the cache is no folder, which write_feature reports
        return False


def write_feature(file: Path, row: NDArray[Any]) -> None:
    """Write a feature file with a row float16 [values] atomically. Raises CacheError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as stream:
            np.save(stream, row)
    except OSError as error:
        raise CacheError(file.parent, error) from None
