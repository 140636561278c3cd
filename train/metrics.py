"""Accuracy metrics of a classifier on one split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from runtime.preprocess.photo_files import NONE_LABEL
from train.data.dataset import Dataset, Photo
from train.network.calibration import expected_calibration_error


class ClassMetrics(TypedDict):
    """Number of photos, recall and precision of one class; None where a share has no photos."""

    n: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class PictureOutputs:
    """The model's outputs: `probabilities` [N, C], and `known` [N] or None without a detector."""

    probabilities: NDArray[Any]
    known: NDArray[Any] | None


@dataclass(frozen=True)
class AddedAnswer:
    """The model's answer for a photo of --add. `answer` is a class, or None for a photo that is rejected as
    unknown; the right one for a photo of none of the classes is None.
    """

    photo: Photo
    answer: str | None
    probability: float
    known: float | None

    @property
    def right(self) -> bool:
        return self.answer == (None if self.photo.label == NONE_LABEL else self.photo.label)


class NegativeMetrics(TypedDict):
    """Metrics of the negatives of one split: their number, the share that is named as a class instead of
    rejected, and the number that is named as each class.
    """

    n: int
    named: float
    per_class: dict[str, int]


class SplitMetrics(TypedDict):
    """Metrics of one split.

    `loss` is the mean cross-entropy in nats, `ece` the expected calibration error. `confusion` counts photos:
    a row per true class, a column per predicted class. `negatives` measures the user's negatives, and
    `default_negatives` the default drawings. If the user gave no negatives, `negatives` measures the
    drawings, and `default_negatives` is None. If there are no negatives at all, both are None.
    """

    n: int
    top1: float
    loss: float
    ece: float
    per_class: dict[str, ClassMetrics]
    confusion: list[list[int]]
    negatives: NegativeMetrics | None
    default_negatives: NegativeMetrics | None


def compute_metrics(
    probabilities: NDArray[Any], labels: NDArray[Any], classes: tuple[str, ...]
) -> SplitMetrics | None:
    """Metrics of probabilities [N, C] against class indices [N], without negatives; None without photos."""
    if not len(labels):
        return None
    predicted = probabilities.argmax(axis=1)
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels, predicted), 1)
    true_class = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float32).tiny)
    return {
        "n": len(labels),
        "top1": float((predicted == labels).mean()),
        "loss": float(-np.log(true_class).mean()),
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
        "negatives": None,
        "default_negatives": None,
    }


def compute_negative_metrics(
    probabilities: NDArray[Any], named: NDArray[np.bool_], classes: tuple[str, ...]
) -> NegativeMetrics:
    """Metrics of N > 0 negatives with probabilities [N, C]; the mask `named` [N] marks the named ones."""
    counts = np.bincount(probabilities[named].argmax(axis=1), minlength=len(classes))
    return {
        "n": len(named),
        "named": float(named.mean()),
        "per_class": dict(zip(classes, counts.tolist(), strict=True)),
    }


def added_answers(
    dataset: Dataset, outputs: PictureOutputs, thresholds: Mapping[str, float]
) -> list[AddedAnswer]:
    """The answers for `dataset.added`, from the model's outputs for these photos in the same order."""
    answers = []
    for row, photo in enumerate(dataset.added):
        known = None if outputs.known is None else float(outputs.known[row])
        probability = float(outputs.probabilities[row].max())
        label = dataset.classes[outputs.probabilities[row].argmax()]
        rejected = known is not None and known < thresholds["known"]
        answers.append(AddedAnswer(photo, None if rejected else label, probability, known))
    return answers


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
