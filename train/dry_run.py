"""The plan of a training run, and an estimate of its time from a few seconds of each kind of work.

The estimate computes at most a tenth of the pictures, and stops after TIME_BOX seconds. Models are built as
in the real run, so the time to build them is part of the estimate.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Mapping
from contextlib import closing, redirect_stderr
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.augment import negative_view_count
from train.data.dataset import Dataset
from train.features.batches import extract_batches
from train.features.devices import Devices
from train.features.extraction import ExtractionPlan
from train.features.replica import Replica
from train.finetune import fine_tune, upper_blocks
from train.network.vgg import Weights
from train.progress import format_duration
from train.settings import Settings
from train.train_head import train_head
from train.trainer import negatives_per_epoch

Split = tuple[NDArray[Any], NDArray[Any]]
TIME_BOX = 2.0  # seconds of extraction, after the first batch
SAMPLE_BATCH = 4  # pictures per batch of extraction, and photos of the fine-tuning step
HEAD_STEPS = 4  # training steps of the head per timed epoch


def print_plan(
    dataset: Dataset, plan: ExtractionPlan, weights: Weights, devices: Devices, settings: Settings
) -> None:
    """Print what a run would compute and train, and an estimate of its time. Nothing is stored."""
    photos, negatives = len(dataset.split("train")), _train_negatives(dataset, settings)
    print(
        f"would compute: features of {plan.pictures:,} pictures, {plan.pictures * plan.size / 1e9:.2f} GB, "
        f"in {plan.folder}"
    )
    print(
        f"would train: the {settings.recipe} head for {settings.epochs} epochs of "
        f"{settings.views * photos:,} pictures, {photos:,} photos in {settings.views} views"
        f"{_and_negatives(settings.views * photos, negatives)}"
    )
    if settings.fine_tune != "none":
        print(
            f"would fine-tune: from {settings.fine_tune} on, for {settings.fine_tune_epochs} epochs of "
            f"{photos:,} photos, each in one of {settings.fine_tune_views} views"
            f"{_and_negatives(photos, negatives)}"
        )
    print("measuring a small part of each stage …", flush=True)
    with redirect_stderr(io.StringIO()):  # progress bars of the samples
        stages = estimate(dataset, plan, weights, devices, settings)
    for stage, seconds in stages.items():
        print(f"would take: about {format_duration(seconds)}, {stage}")
    print(f"would take: about {format_duration(sum(stages.values()))} in all (an estimate for this machine)")


def estimate(
    dataset: Dataset, plan: ExtractionPlan, weights: Weights, devices: Devices, settings: Settings
) -> Mapping[str, float]:
    """Seconds of each stage, by its description."""
    photos, val = len(dataset.split("train")), len(dataset.split("val"))
    negatives = _train_negatives(dataset, settings)
    stages: dict[str, float] = {}
    if plan.missing:
        start, rate = _time_extraction(dataset, plan, weights, devices)
        if rate:
            stages[f"features at {rate:.1f} pictures/s"] = start + plan.pictures / rate
    start, step = _time_head(weights, settings, len(dataset.classes))
    rows = settings.views * photos
    epoch = step * -(-(rows + negatives_per_epoch(rows, negatives)) // settings.batch)
    head = start + epoch * settings.epochs
    if settings.fine_tune == "none":
        stages[f"head at {format_duration(epoch)} per epoch"] = head
        return stages
    start, photo = _time_fine_tuning(plan.layer, len(dataset.classes), weights, settings)
    # The head's pictures pass the blocks once, forward only: a third of a training step (forward + backward).
    stages[f"head at {format_duration(epoch)} per epoch"] = head + (rows + negatives + val) * photo / 3
    epoch = photo * (photos + negatives_per_epoch(photos, negatives))
    stages[f"{settings.fine_tune} at {format_duration(epoch)} per epoch"] = (
        start + epoch * settings.fine_tune_epochs
    )
    return stages


def _train_negatives(dataset: Dataset, settings: Settings) -> int:
    """The number of training negatives, in all their views."""
    most = max(settings.views, settings.fine_tune_views if settings.fine_tune != "none" else 1)
    return len(dataset.negatives_of("train")) * negative_view_count("train", most)


def _and_negatives(photos: int, negatives: int) -> str:
    count = negatives_per_epoch(photos, negatives)
    return f", and {count:,} pictures of none of the classes" if count else ""


def _time_extraction(
    dataset: Dataset, plan: ExtractionPlan, weights: Weights, devices: Devices
) -> tuple[float, float]:
    """Seconds until the first batch, and pictures per second after it, with decoding.

    With a single batch, its pictures per second include the start; they are 0 if no photo is readable.
    """
    small = replace(devices, batch=min(devices.batch, SAMPLE_BATCH))
    began = time.monotonic()
    replicas = [Replica(weights, name, small, plan.layer) for name in small.names]
    repeated = ((photo, [view]) for photo, views in itertools.cycle(plan.missing) for view in views)
    # Enough for two batches. Without an end, photos that cannot be read would be tried forever.
    jobs = itertools.islice(repeated, plan.pictures + 4 * SAMPLE_BATCH)
    with closing(extract_batches(dataset.root, jobs, replicas)) as batches:
        first_pictures = len(next(batches).pictures)
        first = time.monotonic()
        pictures = 0
        for batch in batches:
            pictures += len(batch.pictures)
            if time.monotonic() - first >= TIME_BOX or pictures >= plan.pictures / 10:
                break
        seconds = time.monotonic() - first
    if not pictures:
        return 0.0, first_pictures / max(first - began, 1e-6)
    return first - began, pictures / max(seconds, 1e-6)


def _time_head(weights: Weights, settings: Settings, classes: int) -> tuple[float, float]:
    """Seconds until the first epoch ends, and seconds per step after it."""
    sample = _random_features(weights.output_shape("block5_pool"), classes, HEAD_STEPS * settings.batch)
    ends: list[float] = []
    began = time.monotonic()
    train_head(
        sample,
        (sample[0][:0], sample[1][:0]),
        classes,
        replace(settings, epochs=2),
        on_epoch=lambda stage, metrics: ends.append(time.monotonic()),
    )
    step = (ends[1] - ends[0]) / HEAD_STEPS
    return max(ends[0] - began - HEAD_STEPS * step, 0.0), step


def _time_fine_tuning(layer: str, classes: int, weights: Weights, settings: Settings) -> tuple[float, float]:
    """Seconds until the first step ends, and seconds per photo after it."""
    sample = _random_features(weights.output_shape(layer), classes, SAMPLE_BATCH)
    none = sample[0][:0], sample[1][:0]
    short = replace(settings, epochs=1, fine_tune_epochs=2, fine_tune_views=1, fine_tune_batch=SAMPLE_BATCH)
    ends: list[float] = []
    began = time.monotonic()
    head = train_head(sample, none, classes, short, upper_blocks(weights, short))
    fine_tune(
        head,
        sample,
        none,
        classes,
        weights,
        short,
        on_epoch=lambda stage, metrics: ends.append(time.monotonic()),
    )
    photo = (ends[1] - ends[0]) / SAMPLE_BATCH
    return max(ends[0] - began - SAMPLE_BATCH * photo, 0.0), photo


def _random_features(shape: tuple[int, int, int], classes: int, count: int) -> Split:
    """Random numbers in the shape of features: their values do not change how long training takes."""
    features = np.random.default_rng(0).random((count, *shape), np.float32)
    return features.astype(np.float16), np.arange(count, dtype=np.int32) % classes
