"""Classes of uneven size: told, and weighted so that a small one counts for as much as a large one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.dataset import Dataset

UNEVEN_RATIO = 1.5  # the largest class over the smallest, from where on it is told and weighted


def class_weights(labels: NDArray[Any], classes: int, how: str) -> dict[int, float] | None:
    """How much a photo of each class counts, for class indices [N]: n / (classes x n_c) with "balanced"
    (King & Zeng, "Logistic Regression in Rare Events Data", Political Analysis 2001).

    None, so that every photo counts the same, with "none" and where the classes are even.
    """
    counts = np.bincount(labels, minlength=classes)
    if how == "none" or not _uneven(counts.tolist()):
        return None
    return {index: len(labels) / (classes * int(count)) for index, count in enumerate(counts) if count}


def print_class_balance(dataset: Dataset, how: str) -> None:
    """One line with the photos of each class to train on, when they are uneven."""
    counts = dict.fromkeys(dataset.classes, 0)
    for photo in dataset.split("train"):
        counts[photo.label] += 1
    if _uneven([*counts.values()]):
        told = ", ".join(f"{label} {count:,}" for label, count in counts.items())
        print(f"uneven classes: {told} to train on; --class-weight {how}")


def _uneven(counts: Sequence[int]) -> bool:
    return max(counts) > UNEVEN_RATIO * min(counts)
