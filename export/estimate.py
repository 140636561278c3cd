"""Measure one photo in the trained model, and print how long an export takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import keras
import numpy as np
from numpy.typing import NDArray

from export.int8.layers import conv_chain
from export.int8.search import (
    CALIBRATION_PHOTOS,
    FULL_INT8_RECIPE,
    OTHER_ENGINES_PHOTOS,
    RECIPES,
    VALIDATION_PHOTOS,
)
from export.parity.photo_counts import PhotoCounts
from export.parity.result import FileKey
from export.parity.runner import file_engine_pairs
from export.serving_model import BATCH, predict
from export.time_left import CALIBRATED, Workload, format_estimate, total_seconds
from runtime.inference.engines import default_threads
from train.run import Run

QUICK_PHOTOS = 50
SLOW_EXPORT = 60.0  # seconds from which the quicker options are printed


def measure_workload(
    run: Run,
    model: keras.Model,
    photos: NDArray[np.uint8],
    files: Sequence[FileKey],
    counts: PhotoCounts,
    engines: Sequence[str] | None,
) -> Workload:
    """Counts the work of an export, and measures how long one of `photos` [n, H, W, 3] takes in the model."""
    times: list[float] = []
    batches = np.resize(photos, (3 * BATCH, *photos.shape[1:]))  # the first includes TensorFlow's own start
    predict(model, batches, lambda done: times.append(time.monotonic()))
    calibrated = any(file.precision in CALIBRATED for file in files)
    return Workload(
        photo_seconds=(times[-1] - times[-2]) / BATCH,
        parameters=model.count_params(),
        layers=len(conv_chain(model)) if calibrated else 0,
        recipe=RECIPES[0].name,
        calibration=min(CALIBRATION_PHOTOS, len(run.dataset.split("train"))),
        validation=min(VALIDATION_PHOTOS, len(run.dataset.split("val"))),
        validation_others=min(OTHER_ENGINES_PHOTOS, len(run.dataset.split("val"))),
        test=counts,
        engines=engines,
        workers=default_threads(),
        full_recipe=FULL_INT8_RECIPE.name,
    )


def print_estimate(workload: Workload, files: Sequence[FileKey]) -> None:
    """Prints how long the export takes, and how to make it quicker."""
    seconds = total_seconds(workload.tasks(files))
    pairs = len(file_engine_pairs(files, workload.engines))
    print(f"time: {format_estimate(seconds)} for {len(files)} files and {pairs} pairs of file and engine")
    if workload.test.every_photo < workload.test.most:
        precisions: dict[int, list[str]] = {}
        for precision in dict.fromkeys(file.precision for file in files):
            precisions.setdefault(workload.test.of(precision), []).append(precision)
        compared = "; ".join(f"{count} for {', '.join(names)}" for count, names in precisions.items())
        print(
            f"photos: {compared} (an uncompressed model is slow; --photos N compares all files on N test "
            "photos)"
        )
    quicker = []
    if workload.test.most > 2 * QUICK_PHOTOS:
        fewer = replace(workload, test=PhotoCounts(QUICK_PHOTOS, QUICK_PHOTOS)).tasks(files)
        quicker.append(f"--photos {QUICK_PHOTOS} ({format_estimate(total_seconds(fewer))})")
    if workload.engines is None:
        tflite = [file for file in files if file.format == "tflite"]
        one = replace(workload, engines=("litert",)).tasks(tflite)
        quicker.append(f"--engines litert ({format_estimate(total_seconds(one))})")
    if quicker and seconds > SLOW_EXPORT:
        print(f"quicker: {' or '.join(quicker)}")
