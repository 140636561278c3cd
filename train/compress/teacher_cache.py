"""The trained model's outputs for its own photos, from which the compressed network learns.

They are computed once, from the stored features of the frozen layers, and kept in memory-mapped files beside
the run: each augmented view of a photo or a negative at the compressed network's input size, with the
probabilities, pooled features and descriptor of the trained model (the teacher).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from runtime.common.atomic import atomic_write
from runtime.common.errors import UserError
from train.data.augment import negative_view_count, read_view, view_count
from train.data.class_weights import NEGATIVE
from train.data.dataset import Dataset, Photo
from train.features.extraction import Features
from train.network.descriptor import channel_means, describe
from train.network.vgg import POOLS

BATCH = 16  # a CPU is not faster with more
SAVED_EVERY = 16  # batches: a killed command repeats at most so many


@dataclass(frozen=True)
class TeacherOutputs:
    """Pictures uint8 [N, size, size, 3], class indices int32 [N], and the teacher's `probabilities` float32
    [N, C], pooled `features` float32 [N, W] and `descriptors` float16 [N, D].

    Training photos have several views: the first view of all photos, then the second view of all, and so on.
    Negatives follow the photos.
    """

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]
    descriptors: NDArray[np.float16]

    @property
    def photos(self) -> int:
        """The number of rows that show a class."""
        return int((self.labels != NEGATIVE).sum())

    def without_negatives(self) -> TeacherOutputs:
        return TeacherOutputs(*(getattr(self, field.name)[: self.photos] for field in fields(self)))


def upper_teacher(model: keras.Model, layer: str) -> keras.Model:
    """The part of a run's model above the pooling layer `layer`.

    It maps the layer's output, and the channel means of the pooling layers up to it where the model computes
    them, to the probabilities and the channel means of each pooling layer above.
    """
    frozen, above = POOLS[: POOLS.index(layer) + 1], POOLS[POOLS.index(layer) + 1 :]
    names = {each.name for each in model.layers}
    means = [model.get_layer(f"{pool}_means").output for pool in frozen if f"{pool}_means" in names]
    outputs = dict(zip(model.output_names, model.outputs, strict=True))
    upper = [channel_means(model.get_layer(pool).output) for pool in above]
    return keras.Model([model.get_layer(layer).output, *means], [outputs["probabilities"], *upper])


def collect_teacher_outputs(
    features: Features,
    split: str,
    size: int,
    teacher: keras.Model,
    folder: Path,
    on_step: Callable[[int], object],
) -> TeacherOutputs:
    """The outputs of `teacher`, made by `upper_teacher`, for the photos and negatives of a split.

    It resumes from the files in `folder`.

    `on_step` gets the number of finished pictures. Raises UserError when the disk is full, PhotosError when a
    photo has changed, PictureError when it cannot be read.
    """
    try:
        return _collect(features, split, size, teacher, folder, on_step)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); free some disk space, then run the "
            "same command with --resume"
        ) from None


def _collect(
    features: Features,
    split: str,
    size: int,
    teacher: keras.Model,
    folder: Path,
    on_step: Callable[[int], object],
) -> TeacherOutputs:
    dataset = features.dataset
    jobs = _jobs(dataset, split, features.views)
    store, labels = features.photos_and_negatives(split)
    frozen_means = store.channel_means()
    widths = [part.shape[1] for part in frozen_means]
    widths += [int(output.shape[-1]) for output in teacher.outputs[1:]]
    progress_file = folder / f"{split}.json"
    done = json.loads(progress_file.read_text()) if progress_file.exists() else 0
    files = _MappedFiles(folder, split, len(jobs), resume=bool(done))
    outputs = TeacherOutputs(
        files.map("pictures", np.uint8, size, size, 3),
        labels,
        files.map("probabilities", np.float32, len(dataset.classes)),
        files.map("features", np.float32, widths[-1]),
        files.map("descriptors", np.float16, sum(widths)),
    )

    def read(job: tuple[Photo, int]) -> NDArray[np.uint8]:
        return read_view(dataset, *job, (size, size))

    on_step(done)
    with ThreadPoolExecutor(2) as pool:
        for start in range(done, len(jobs), BATCH):
            rows = slice(start, min(start + BATCH, len(jobs)))
            outputs.pictures[rows] = np.stack([*pool.map(read, jobs[rows])])
            means = [part[rows] for part in frozen_means]
            inputs = [store[rows], *means][: len(teacher.inputs)]
            # Keras returns an array instead of a list of one.
            found = keras.tree.flatten(teacher.predict_on_batch(inputs))
            probabilities, *upper = map(np.asarray, found)
            means += upper
            outputs.probabilities[rows] = probabilities
            outputs.features[rows] = means[-1]
            outputs.descriptors[rows] = describe(means)
            if (start // BATCH + 1) % SAVED_EVERY == 0 or rows.stop == len(jobs):
                files.flush()
                with atomic_write(progress_file) as file:
                    file.write(json.dumps(rows.stop).encode())
            on_step(rows.stop - start)
    return outputs


def _jobs(dataset: Dataset, split: str, views: int) -> list[tuple[Photo, int]]:
    """The photos and then the negatives of a split, each with the number of a view, in the order of
    `Features.photos_and_negatives`.
    """
    photos = [(photo, view) for view in range(view_count(split, views)) for photo in dataset.split(split)]
    negatives = [
        (photo, view)
        for view in range(negative_view_count(split, views))
        for photo in dataset.negatives_of(split)
    ]
    return photos + negatives


class _MappedFiles:
    """Memory-mapped .npy files `SPLIT.PART.npy` with a row for each of `count` pictures."""

    def __init__(self, folder: Path, split: str, count: int, resume: bool) -> None:
        self.folder, self.split, self.count, self.resume = folder, split, count, resume
        self.arrays: list[Any] = []

    def map(self, part: str, dtype: type, *row: int) -> Any:
        file, shape = self.folder / f"{self.split}.{part}.npy", (self.count, *row)
        if not self.count:  # an empty file cannot be mapped
            return np.empty(shape, dtype)
        mode = "r+" if self.resume else "w+"
        array = np.lib.format.open_memmap(file, mode, dtype, shape)  # type: ignore[no-untyped-call]
        # Reserve the space now: writing to a mapped file on a full disk ends the process with SIGBUS.
        if hasattr(os, "posix_fallocate"):
            with file.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
        self.arrays.append(array)
        return array

    def flush(self) -> None:
        for array in self.arrays:
            array.flush()
