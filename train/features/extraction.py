"""Run the frozen base over all photos, once for each view, and cache the features on disk.

A feature is the output of the last frozen layer: block5_pool's [7, 7, 512] of VGG16 unless blocks are
fine-tuned, stored as float16 with the channel means of the pooling layers up to it. The cache key holds
everything that these depend on: the photo's bytes, the version of the picture code, the base's weights, the
input size, the layer, the dtype, Keras's backend and the view. Runs with other recipes and seeds share the
cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from runtime.common.text import printable
from runtime.preprocess.photo_files import NONE_LABEL
from runtime.preprocess.picture import PICTURE_VERSION
from train.cache import CACHE_LIMIT, make_room
from train.data.augment import negative_view_count, view_count
from train.data.class_weights import NEGATIVE
from train.data.dataset import Dataset, LeftOut, Photo
from train.features.batches import PhotoViews, extract_batches
from train.features.devices import Devices, find_devices
from train.features.ray_cluster import RayCluster
from train.features.replica import Replica
from train.features.store import (
    FeatureLayout,
    FeatureStore,
    feature_file,
    feature_layout,
    is_complete,
    write_feature,
)
from train.network.vgg import Weights
from train.progress import Progress


@dataclass(frozen=True)
class Features:
    """The features of `dataset`, which no longer holds the unreadable photos."""

    dataset: Dataset
    folder: Path
    layout: FeatureLayout
    views: int

    def of(self, split: str, views: int | None = None) -> tuple[FeatureStore, NDArray[np.int32]]:
        """Features [N, height, width, channels] and class indices int32 [N] of a split's photos.

        Training photos have several views: first the first view of all photos, then the second, and so on.
        """
        photos, count = self.dataset.split(split), view_count(split, views or self.views)
        labels = [self.dataset.classes.index(photo.label) for photo in photos] * count
        return self._store(photos, count), np.array(labels, np.int32)

    def negatives_of(self, split: str) -> tuple[FeatureStore, NDArray[np.int32]]:
        """The same for a split's negatives: each class index is NEGATIVE, and training has their views."""
        negatives, count = self.dataset.negatives_of(split), negative_view_count(split, self.views)
        store = self._store(negatives, count)
        return store, np.full(len(store), NEGATIVE, np.int32)

    def added(self) -> tuple[FeatureStore, NDArray[np.int32]]:
        """The same for the photos and then the negatives of --add, in a single view each."""
        added, classes = self.dataset.added, self.dataset.classes
        labels = [NEGATIVE if photo.label == NONE_LABEL else classes.index(photo.label) for photo in added]
        return self._store(added, 1), np.array(labels, np.int32)

    def photos_and_negatives(
        self, split: str, views: int | None = None
    ) -> tuple[FeatureStore, NDArray[np.int32]]:
        """The photos of a split as `of` returns them, then its negatives."""
        (photos, labels), (negatives, none) = self.of(split, views), self.negatives_of(split)
        return photos + negatives, np.concatenate([labels, none])

    def _store(self, photos: Sequence[Photo], views: int) -> FeatureStore:
        files = (feature_file(self.folder, photo, view) for view in range(views) for photo in photos)
        return FeatureStore(tuple(files), self.layout)


@dataclass(frozen=True)
class ExtractionPlan:
    """The feature files of a run, of `size` bytes each, and the photos with views that have none yet."""

    folder: Path
    layer: str
    size: int
    files: frozenset[Path]
    missing: list[PhotoViews]

    @property
    def pictures(self) -> int:
        """The number of pictures to compute."""
        return sum(len(views) for _, views in self.missing)


def extract(
    dataset: Dataset,
    weights: Weights,
    cache: Path,
    *,
    views: int,
    layer: str = "block5_pool",
    devices: Devices | None = None,
    limit: int = CACHE_LIMIT,
    cluster: RayCluster | None = None,
) -> Features:
    """All features of `dataset`; those that `cache` lacks are computed. The cache stays within `limit` bytes.

    Each training photo has `views` views (train/data/augment.py), a training negative has fewer, and other
    photos have one. Unreadable photos move to the data set's `left_out`. Stopping loses at most the batches
    that are being computed. Raises CacheError, ClusterError, and UserError if the cache would exceed its
    limit.
    """
    devices = cluster.devices if cluster else devices or find_devices()
    plan = plan_extraction(dataset, weights, cache, views=views, layer=layer, devices=devices)
    make_room(cache, plan.files, plan.size * plan.pictures, limit)
    photos = len(dataset.photos) + len(dataset.negatives)
    print(f"features: {photos - len(plan.missing):,} of {photos:,} photos are in the cache")
    unreadable: list[LeftOut] = []
    if plan.missing:
        unreadable = compute_features(dataset.root, plan, weights, devices, cluster)
    readable = dataset.without(unreadable) if unreadable else dataset
    return Features(readable, plan.folder, feature_layout(weights, layer), views)


def plan_extraction(
    dataset: Dataset, weights: Weights, cache: Path, *, views: int, layer: str, devices: Devices
) -> ExtractionPlan:
    """The work that `extract` does with the same arguments."""
    height, width = weights.input_size
    folder = cache / (
        f"{weights.sha256[:16]}-picture{PICTURE_VERSION}-{height}x{width}-{layer}-{devices.dtype}"
        f"-{keras.backend.backend()}-means"
    )
    size = feature_layout(weights, layer).file_size
    missing: list[PhotoViews] = []
    files: set[Path] = set()
    counts = [(photo, view_count(photo.split, views)) for photo in dataset.photos]
    counts += [(photo, negative_view_count(photo.split, views)) for photo in dataset.negatives]
    for photo, count in counts:
        by_view = {view: feature_file(folder, photo, view) for view in range(count)}
        files.update(by_view.values())
        missing_views = [view for view, file in by_view.items() if not is_complete(file, size)]
        if missing_views:
            missing.append((photo, missing_views))
    return ExtractionPlan(folder, layer, size, frozenset(files), missing)


def compute_features(
    root: Path,
    plan: ExtractionPlan,
    weights: Weights,
    devices: Devices,
    cluster: RayCluster | None = None,
) -> list[LeftOut]:
    """Compute and store the missing features on `devices` or `cluster`; returns the unreadable photos."""
    if cluster:
        batches = cluster.extract_batches(root, plan.missing, weights, plan.layer)
    else:
        replicas = [Replica(weights, name, devices, plan.layer) for name in devices.names]
        batches = extract_batches(root, plan.missing, replicas)
    unreadable: list[LeftOut] = []
    with Progress("features", plan.pictures, "pictures") as progress, closing(batches):
        for batch in batches:
            for (photo, view), row in zip(batch.pictures, batch.rows, strict=True):
                write_feature(feature_file(plan.folder, photo, view), row)
            unreadable += [LeftOut(photo.path, printable(reason)) for (photo, _), reason in batch.unreadable]
            skipped = sum(len(views) for (_, views), _ in batch.unreadable)
            progress.step(len(batch.pictures) + skipped)
    return unreadable
