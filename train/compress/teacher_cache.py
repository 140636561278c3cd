"""What a trained model says of its own photos, for a smaller one to learn from.

It is kept on disk while it is worked on: the pictures in every view, as the smaller model will see them, and
beside each the probabilities and the pooled features that the trained model gives for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from runtime.common.atomic import atomic_write
from runtime.common.errors import UserError
from train.data.augment import augment
from train.data.dataset import Dataset, Photo, read_verified

BATCH = 16  # pictures at once: a CPU gains nothing past this
NOTED_EVERY = 16  # batches: a killed command looks at no more than these again


@dataclass(frozen=True)
class TeacherOutputs:
    """Pictures uint8 [N, size, size, 3], their class indices int32 [N], and what the trained model says of
    each: `probabilities` float32 [N, C] and pooled `features` float32 [N, 512].

    Of the training photos there are several views: all photos' first, then all photos' second, and so on.
    """

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]


def with_pooled_features(model: keras.Model) -> keras.Model:
    """A run's model that gives, for `image`, its probabilities and its mean over block5_pool's positions."""
    last = model.get_layer("block5_pool").output
    pooled = keras.layers.GlobalAveragePooling2D(name="features", dtype="float32")(last)
    named = dict(zip(model.output_names, model.outputs, strict=True))
    return keras.Model(model.inputs[0], [named["probabilities"], pooled])


def collect_teacher_outputs(
    dataset: Dataset,
    split: str,
    views: int,
    size: int,
    trained: keras.Model,
    folder: Path,
    step: Callable[[int], None],
) -> TeacherOutputs:
    """Look at a split with `trained`, see `with_features`, going on from what `folder` holds of it.

    `step` is called with how many pictures were looked at. Raises UserError when the disk is full,
    PhotosError as `recorded`, PictureError.
    """
    jobs = [(photo, view) for view in range(views) for photo in dataset.split(split)]
    labels = np.array([dataset.classes.index(photo.label) for photo, _ in jobs], np.int32)
    noted = folder / f"{split}.json"
    own_size = trained.input_shape[1:3]

    def look(job: tuple[Photo, int]) -> tuple[NDArray[Any], NDArray[Any]]:
        """As the trained model sees it, and as the smaller one will."""
        photo, view = job
        data = read_verified(dataset, photo)
        whole, small = (augment(data, photo.sha256, [view], sides)[0] for sides in (own_size, (size, size)))
        return whole, small

    try:
        done = json.loads(noted.read_text()) if noted.exists() else 0
        mapped: list[Any] = []

        def stored(part: str, dtype: type, *each: int) -> Any:
            file, shape = folder / f"{split}.{part}.npy", (len(jobs), *each)
            if not jobs:  # a file without bytes cannot be mapped
                return np.empty(shape, dtype)
            mapped.append(np.lib.format.open_memmap(file, "r+" if done else "w+", dtype, shape))  # type: ignore[no-untyped-call]
            if hasattr(os, "posix_fallocate"):  # a full disk would be a signal as soon as it is written to
                with file.open("r+b") as stream:
                    os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
            return mapped[-1]

        lessons = TeacherOutputs(
            stored("pictures", np.uint8, size, size, 3),
            labels,
            stored("probabilities", np.float32, len(dataset.classes)),
            stored("features", np.float32, int(trained.outputs[1].shape[-1])),
        )
        step(done)
        with ThreadPoolExecutor(2) as pool:
            for start in range(done, len(jobs), BATCH):
                rows = slice(start, min(start + BATCH, len(jobs)))
                whole, small = zip(*pool.map(look, jobs[rows]), strict=True)
                said = trained.predict_on_batch(np.stack(whole))
                lessons.pictures[rows] = np.stack(small)
                lessons.probabilities[rows], lessons.features[rows] = map(np.asarray, said)
                if (start // BATCH + 1) % NOTED_EVERY == 0 or rows.stop == len(jobs):
                    for array in mapped:
                        array.flush()
                    with atomic_write(noted) as file:
                        file.write(json.dumps(rows.stop).encode())
                step(rows.stop - start)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); make room there, then --resume"
        ) from None
    return lessons
