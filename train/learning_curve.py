"""Would more photos help? The accuracy with fewer photos, and an estimate for twice as many.

The error of a classifier falls about as a power of the number of training photos (Hestness et al., "Deep
Learning Scaling is Predictable, Empirically", 2017). A linear classifier on the frozen base's pooled features
is fitted on parts of the training photos and measured on photos that it has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.intervals import confidence_interval
from train.linear_probe import FOLDS, Blocks, divide

PARTS = (2, 4, 8, 15)  # blocks to fit on: about 1/8, 1/4, 1/2 and all photos; the others measure
DRAWS = 2  # random choices of these blocks for each measured block
FIRST_FITTED = 1  # the power law is fitted from this part on, because the curve flattens
SAMPLES = 1000  # of the errors, for the intervals
MIN_CLASS_PHOTOS = 16  # with fewer photos of a class, a part may have none of them
SMALL_GAIN = 0.5  # points; smaller gains are not given as a number
INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class LearningPoint:
    """The accuracy of a classifier fitted on `photos` photos, with its 95 % interval."""

    photos: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class LearningCurve:
    """The accuracy by number of photos, and the estimated gain of twice as many photos with its 95 %
    interval, as shares of the photos.
    """

    points: Sequence[LearningPoint]
    gain: float
    interval: tuple[float, float]

    @property
    def sentence(self) -> str:
        """The estimate in one sentence."""
        if self.points and self.points[-1].accuracy == 1:
            return (
                "a small classifier makes no mistake on the training photos, so they do not show whether "
                "more would help"
            )
        low, high = (100 * bound for bound in self.interval)
        if high < SMALL_GAIN:
            return f"twice as many training photos would add less than {SMALL_GAIN:g} points"
        return (
            f"twice as many training photos would add about {100 * self.gain:.1f} points "
            f"(95 % interval {low:.1f} to {high:.1f})"
        )


def learning_curve(pooled: NDArray[Any], labels: NDArray[Any], classes: int) -> LearningCurve | None:
    """The curve for pooled features [N, W] and class indices [N] of the training photos; None if a class has
    fewer than MIN_CLASS_PHOTOS.
    """
    if np.bincount(labels, minlength=classes).min() < MIN_CLASS_PHOTOS:
        return None
    blocks = divide(pooled, labels, classes, FOLDS)
    right = np.stack([_right(blocks, part) for part in PARTS], axis=1)
    sizes = np.array(PARTS) * len(labels) / FOLDS
    error = 1 - right.mean(0)
    # The parts are measured on the same photos, so their errors are correlated.
    covariance = np.cov(right.T) / len(labels)
    errors = np.random.default_rng(0).multivariate_normal(error, covariance, SAMPLES).clip(0, 1)
    low, high = np.percentile(errors, INTERVAL, axis=0)
    # Without a mistake the variance is 0, which a few photos do not prove.
    high = np.where(error == 0, confidence_interval(0, len(labels))[1], high)
    points = [
        LearningPoint(round(size), float(1 - mean), (float(1 - most), float(1 - least)))
        for size, mean, least, most in zip(sizes, error, low, high, strict=True)
    ]
    gains = _gain(sizes, errors, len(labels))
    least, most = np.percentile(gains, INTERVAL)
    return LearningCurve(
        points, float(_gain(sizes, error[np.newaxis], len(labels))[0]), (float(least), float(most))
    )


def _right(blocks: Blocks, part: int) -> NDArray[np.float64]:
    """For each photo [N], the share of classifiers fitted on `part` other blocks that are right about it."""
    right = np.zeros(len(blocks.labels))
    rng = np.random.default_rng(0)
    for held_out in range(FOLDS):
        rows = blocks.rows(held_out)
        others = [block for block in range(FOLDS) if block != held_out]
        draws = DRAWS if part < len(others) else 1
        for _ in range(draws):
            chosen = rng.permutation(others)[:part].tolist()
            right[rows] += (blocks.logits(chosen, rows).argmax(1) == blocks.labels[rows]) / draws
    return right


def _gain(sizes: NDArray[np.float64], errors: NDArray[np.float64], photos: int) -> NDArray[np.float64]:
    """The fall of the error [n] from `photos` to twice as many, by a power law through errors [n, parts]."""
    logs = np.log(np.maximum(errors[:, FIRST_FITTED:], 0.5 / photos))
    log_sizes = np.log(sizes[FIRST_FITTED:])
    x = log_sizes - log_sizes.mean()
    slope = np.minimum((logs * x).sum(1) / (x * x).sum(), 0)
    at_all = np.exp(logs.mean(1) + slope * (np.log(photos) - log_sizes.mean()))
    return np.asarray(at_all * (1 - 2**slope), np.float64)
