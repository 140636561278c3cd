"""What a run would do, and how long it would take on this machine, by timing a little of each work."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from train.data.dataset import Dataset
from train.features.extraction import Devices, Work, compute
from train.finetune import fine_tune, upper_blocks
from train.network.vgg import SHAPES, Weights
from train.settings import Settings
from train.train_head import TrainedHead, train_head

Split = tuple[NDArray[Any], NDArray[Any]]
PROBE = 16  # pictures, or rows of features: timed, against three times as many


def print_plan(dataset: Dataset, work: Work, weights: Weights, devices: Devices, settings: Settings) -> None:
    """Print it. What is computed for it is not kept."""
    photos, val = len(dataset.split("train")), len(dataset.split("val"))
    classes, pictures = len(dataset.classes), settings.views * photos
    tuned = settings.fine_tune != "none"
    print(
        f"would compute: features of {work.pictures:,} pictures, {work.pictures * work.size / 1e9:.2f} GB, "
        f"in {work.folder}"
    )
    print(
        f"would train: the {settings.recipe} head for {settings.epochs} epochs of {pictures:,} pictures, "
        f"{photos:,} photos in {settings.views} views"
    )
    if tuned:
        print(
            f"would fine-tune: from {settings.fine_tune} on, for {settings.fine_tune_epochs} epochs of "
            f"{photos:,} photos, each in one of {settings.fine_tune_views} views"
        )
    print("timing a little of each …", flush=True)

    def extract(count: int) -> None:
        jobs = [(photo, [view]) for photo, views in work.missing for view in views]
        repeated = [jobs[number % len(jobs)] for number in range(count)]
        with tempfile.TemporaryDirectory(prefix="vgg-edge-") as folder:
            compute(dataset.root, repeated, Path(folder), weights, work.layer, devices)

    def head(count: int) -> TrainedHead:
        one = replace(settings, epochs=1)
        drawn = _drawn(work.layer, classes, count)
        return train_head(drawn, _none(drawn), classes, one, upper_blocks(weights, settings))

    def steps(epochs: int) -> TrainedHead:
        drawn = _drawn("block5_pool", classes, 10 * settings.batch)
        return train_head(drawn, _none(drawn), classes, replace(settings, epochs=epochs))

    def blocks(count: int) -> None:
        one = replace(settings, fine_tune_epochs=1, fine_tune_views=1)
        drawn = _drawn(work.layer, classes, count)
        fine_tune(start, drawn, _none(drawn), classes, weights, one)

    parts = {}
    with redirect_stderr(io.StringIO()):  # its progress is not this command's
        if work.missing:
            begin, each = _pace(extract, PROBE, 3 * PROBE)
            parts[f"features at {1 / each:.1f} pictures/s"] = begin + each * work.pictures
        # Each row goes once through what lies below the head's weights, and then the head takes its steps.
        begin, each = _pace(head, PROBE, 3 * PROBE)
        _, ten = _pace(steps, 1, 11)
        epoch = ten / 10 * -(-pictures // settings.batch)
        parts[f"head at {_told(epoch)} an epoch"] = begin + each * (pictures + val) + epoch * settings.epochs
        if tuned:
            start = head(PROBE)
            begin, each = _pace(blocks, PROBE, 3 * PROBE)
            parts[f"{settings.fine_tune} at {_told(each * photos)} an epoch"] = (
                begin + each * photos * settings.fine_tune_epochs
            )
    for what, seconds in parts.items():
        print(f"would take: {_told(seconds)}, {what}")
    print(f"would take: {_told(sum(parts.values()))} in all, about")


def _pace(run: Callable[[int], object], few: int, many: int) -> tuple[float, float]:
    """Seconds that `run` takes to begin, and for each of what it is given the number of."""
    taken = []
    for count in (few, many):
        began = time.monotonic()
        run(count)
        taken.append(time.monotonic() - began)
    each = max(taken[1] - taken[0], 1e-6) / (many - few)
    return max(taken[0] - few * each, 0.0), each


def _drawn(layer: str, classes: int, count: int) -> Split:
    """Numbers in the shape of features: what they are does not change how long they take."""
    features = np.random.default_rng(0).gamma(0.5, 2.0, (count, *SHAPES[layer]))
    return features.astype(np.float16), np.arange(count, dtype=np.int32) % classes


def _none(split: Split) -> Split:
    return split[0][:0], split[1][:0]


def _told(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 60 else str(tqdm.format_interval(seconds))
