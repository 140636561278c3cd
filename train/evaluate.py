"""What a trained head gets right."""

from __future__ import annotations

from typing import Any, TypedDict

import keras
import numpy as np
from numpy.typing import NDArray


class ClassFigures(TypedDict):
    """Of one class: how many photos it has, how many of them are found, how many of those named so are
    right.
    """

    n: int
    recall: float | None
    precision: float | None


class Figures(TypedDict):
    """Of one split. `loss` is the mean cross-entropy in nats; `confusion` has a row a true class."""

    n: int
    top1: float
    loss: float
    per_class: dict[str, ClassFigures]
    confusion: list[list[int]]


def evaluate(
    head: keras.Model, features: NDArray[Any], labels: NDArray[Any], classes: tuple[str, ...]
) -> Figures | None:
    """Figures for features [N, 7, 7, 512] with class indices [N]; None when there are none."""
    if not len(labels):
        return None
    probabilities = np.concatenate(
        [
            np.asarray(head.predict_on_batch(features[start : start + 256].astype(np.float32)))
            for start in range(0, len(features), 256)
        ]
    )
    return figures(probabilities, labels, classes)


def figures(probabilities: NDArray[Any], labels: NDArray[Any], classes: tuple[str, ...]) -> Figures:
    """Figures for probabilities [N, C] against class indices [N]."""
    named = probabilities.argmax(axis=1)
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels, named), 1)
    right = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float32).tiny)
    return {
        "n": len(labels),
        "top1": float((named == labels).mean()),
        "loss": float(-np.log(right).mean()),
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


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
