"""What a trained model gets right."""

from __future__ import annotations

import math
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from train.network.calibration import expected_calibration_error


class ClassMetrics(TypedDict):
    """Of one class: how many photos it has, how many of them are found, how many of those named so are
    right.
    """

    n: int
    recall: float | None
    precision: float | None


class SplitMetrics(TypedDict):
    """Of one split. `loss` is the mean cross-entropy in nats, `ece` the expected calibration error;
    `confusion` has a row a true class.
    """

    n: int
    top1: float
    loss: float
    ece: float
    per_class: dict[str, ClassMetrics]
    confusion: list[list[int]]


def compute_metrics(
    probabilities: NDArray[Any], labels: NDArray[Any], classes: tuple[str, ...]
) -> SplitMetrics | None:
    """Figures for probabilities [N, C] against class indices [N]; None when there are none."""
    if not len(labels):
        return None
    named = probabilities.argmax(axis=1)
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels, named), 1)
    right = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float32).tiny)
    return {
        "n": len(labels),
        "top1": float((named == labels).mean()),
        "loss": float(-np.log(right).mean()),
        "ece": expected_calibration_error(probabilities, labels),
        "per_class": {
            name: {
                "n": int(confusion[index].sum()),
                "recall": _share(confusion[index, index], confusion[index].sum()),
                "precision": _share(confusion[index, index], confusion[:, index].sum()),
            }
            for index, name in enumerate(classes)
        },
        "confusion": confusion.tolist(),
    }


def confidence_interval(right: int, n: int) -> tuple[float, float]:
    """Between what shares the true one lies, 95 times in 100, when `right` of n > 0 photos were.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    z = 1.96
    middle = (right + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(right * (n - right) / n + z**2 / 4)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
