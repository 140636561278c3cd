"""Weights for classes with different numbers of photos, so that each class counts the same in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.dataset import Dataset

NEGATIVE = -1  # the class index of a photo of none of the classes
UNEVEN_RATIO = 1.5  # largest class / smallest class, above which classes are weighted


def class_weights(labels: NDArray[Any], classes: int, method: str) -> dict[int, float] | None:
    """The weight of a photo by class index, for class indices [N]: n / (classes x n_c) with "balanced"
    (King & Zeng, "Logistic Regression in Rare Events Data", Political Analysis 2001).

    Negatives do not count. None, which gives each photo the same weight, with "none" and if the classes are
    even.
    """
    photos = labels[labels != NEGATIVE]
    counts = np.bincount(photos, minlength=classes)
    if method == "none" or not _uneven(counts.tolist()):
        return None
    return {index: len(photos) / (classes * int(count)) for index, count in enumerate(counts) if count}


def print_class_balance(dataset: Dataset, method: str) -> None:
    """Print the number of training photos of each class, if the classes are uneven; and a warning for classes
    without test photos, if other classes have some.
    """
    counts = dict.fromkeys(dataset.classes, 0)
    for photo in dataset.split("train"):
        counts[photo.label] += 1
    if _uneven([*counts.values()]):
        numbers = ", ".join(f"{label} {count:,}" for label, count in counts.items())
        print(f"uneven classes: {numbers} training photos; --class-weight {method}")
    measured = {photo.label for photo in dataset.split("test")}
    if measured and (others := [label for label in dataset.classes if label not in measured]):
        names = ", ".join(others[:3]) + (f" and {len(others) - 3:,} more" if others[3:] else "")
        print(f"warning: no test photo of {names}, so the accuracy is not measured there; add photos")


def _uneven(counts: Sequence[int]) -> bool:
    return max(counts) > UNEVEN_RATIO * min(counts)
