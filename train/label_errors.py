"""Find training photos whose label may be wrong: confident learning.

Northcutt, Jiang & Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021. Each
photo is classified by a model that was fitted without it. A photo is suspect if the probability of another
class reaches the mean probability that the photos of that class have of their own class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.dataset import Photo
from train.data.manifest import write_csv
from train.linear_probe import FOLDS, cross_validate, divide

MIN_JUDGED_PHOTOS = 8  # of a class: the labels of smaller classes are not judged


@dataclass(frozen=True)
class SuspectLabel:
    """A training photo that a model fitted without it assigns to `other`. `own_probability` is that of the
    photo's label. `confident`: the photo is suspect by confident learning.
    """

    photo: Photo
    other: str
    own_probability: float
    other_probability: float
    confident: bool


def suspect_labels(
    photos: Sequence[Photo], pooled: NDArray[Any], classes: tuple[str, ...]
) -> list[SuspectLabel]:
    """The photos with a more probable class than their label, the most suspect ones first.

    `pooled` [N, W] are the pooled features of the N training photos.
    """
    labels = np.array([classes.index(photo.label) for photo in photos], np.intp)
    judged = judged_labels(photos)
    if not judged:
        return []
    probabilities = cross_validate(divide(pooled, labels, len(classes), FOLDS))
    is_judged = np.array([label in judged for label in classes])
    probabilities[:, ~is_judged] = 0
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    confident = _confident_class(probabilities, labels, is_judged) != labels
    rest = probabilities.copy()
    rest[rows, labels] = -1
    other = rest.argmax(1)
    margin = own - rest.max(1)
    order = np.lexsort((margin, ~confident))
    return [
        SuspectLabel(
            photos[row],
            classes[other[row]],
            float(own[row]),
            float(rest[row, other[row]]),
            bool(confident[row]),
        )
        for row in order
        if margin[row] < 0 and is_judged[labels[row]]
    ]


def judged_labels(photos: Sequence[Photo]) -> set[str]:
    """The labels of the training photos that `suspect_labels` judges; the others have too few photos."""
    counts = Counter(photo.label for photo in photos)
    return {
        label
        for label, count in counts.items()
        if count >= MIN_JUDGED_PHOTOS and len(photos) >= 2 * MIN_JUDGED_PHOTOS
    }


def write_suspects(suspects: Sequence[SuspectLabel], folder: Path) -> None:
    """Write suspect_labels.csv: path, label, the other class, both probabilities, and `suspect`, 1 or 0."""
    columns = ("path", "label", "other", "label_probability", "other_probability", "suspect")
    rows = (
        (
            suspect.photo.path,
            suspect.photo.label,
            suspect.other,
            f"{suspect.own_probability:.4f}",
            f"{suspect.other_probability:.4f}",
            int(suspect.confident),
        )
        for suspect in suspects
    )
    write_csv(folder / "suspect_labels.csv", columns, rows)


def _confident_class(
    probabilities: NDArray[np.float64], labels: NDArray[np.intp], is_judged: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """The class [N] with the highest probability among those that reach their threshold, or the label."""
    thresholds = np.array(
        [
            probabilities[labels == index, index].mean() if judged else np.inf
            for index, judged in enumerate(is_judged)
        ]
    )
    reached = np.where(probabilities >= thresholds, probabilities, -1)
    return np.where(reached.max(1) >= 0, reached.argmax(1), labels)
