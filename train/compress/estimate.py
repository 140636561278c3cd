"""Estimate how long compression takes, from the time of one batch."""

from __future__ import annotations

import time
from dataclasses import dataclass

import keras
import numpy as np

from train.compress.allocation import NetworkShape
from train.compress.sensitivity import MEASURING_SIZE, PROBE_PHOTOS
from train.trainer import negatives_per_epoch

BATCH = 8
TRAINING_FACTOR = 3  # forward and backward pass, in forward passes
LEAST_SQUARES_GMACS = 2_500  # of both rounds of elimination, for VGG16's channels; they grow with the cube
SAMPLE_GMACS = 15  # of the least squares of each reconstruction photo, for VGG16's channels


@dataclass(frozen=True)
class Workload:
    """The pictures, epochs and reduction that the time depends on.

    `pictures` counts all views of the photos and negatives of all splits, `missing` the views without stored
    features, `train_negatives` all views of negatives in train. `first_block` is the first block above the
    layer of the features.
    """

    train_photos: int
    train_negatives: int
    pictures: int
    missing: int
    first_block: int
    reconstruction_photos: int
    epochs: int
    reduction: float


def estimate_seconds(teacher: keras.Model, original: NetworkShape, work: Workload) -> float:
    """Seconds of all stages together, without the head and the timings of --target-ms.

    The time of one batch of the teacher gives the seconds per GMAC; the GMACs of the stages are counted.
    """
    pictures = np.zeros((BATCH, original.size, original.size, 3), np.uint8)
    teacher.predict_on_batch(pictures)  # the first batch also compiles the model
    began = time.monotonic()
    teacher.predict_on_batch(pictures)
    seconds_per_gmac = (time.monotonic() - began) / (BATCH * original.macs / 1e9)
    return seconds_per_gmac * count_gmacs(original, work)


def count_gmacs(original: NetworkShape, work: Workload) -> float:
    """The GMACs of sensitivities, the teacher's outputs, reconstruction and distillation."""
    forward = original.macs / 1e9
    measuring = NetworkShape(min(MEASURING_SIZE, original.size), original.widths).macs / 1e9
    relative_width = original.widths["block5_conv3"] / 512
    sample = min(work.reconstruction_photos, work.train_photos)
    least_squares = LEAST_SQUARES_GMACS * relative_width**3 + 2 * SAMPLE_GMACS * relative_width**2 * sample
    # Each of 13 convolutions is probed through the layers after it: half of the network on average.
    sensitivities = measuring * (sample + PROBE_PHOTOS * 13 / 2) + 2 * forward * PROBE_PHOTOS
    upper = original.macs_from(work.first_block) / 1e9
    teacher = (forward - upper) * work.missing + upper * work.pictures
    reconstruction = forward * sample
    epoch = work.train_photos + negatives_per_epoch(work.train_photos, work.train_negatives)
    distillation = TRAINING_FACTOR * forward / work.reduction * work.epochs * epoch
    return least_squares + sensitivities + teacher + reconstruction + distillation
