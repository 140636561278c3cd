"""Chooses the taught photos that a fit uses, and their folds of the cross-validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

MAX_FITTED = 600  # photos; the time of a fit grows with the square of their number
NEWEST_SHARE = 0.25  # of the photos of a label that are used because they are the newest
FOLDS = 5


def fold_numbers(truth: Integers, right: NDArray[np.bool_]) -> Integers:
    """Returns each photo's fold; -1 for photos beyond MAX_FITTED, which no fit uses.

    `truth` [N] are the labels of the photos, oldest first, and `right` [N] whether the model alone answers
    them right. Photos of one series resemble their neighbours: a fold has photos in a row.
    """
    labels, counts = np.unique(truth, return_counts=True)
    most = MAX_FITTED
    while np.minimum(counts, most).sum() > MAX_FITTED:
        most -= 1
    folds = np.full(len(truth), -1)
    for label in labels:
        used = _choose(np.flatnonzero(truth == label), right, most)
        folds[used] = np.arange(len(used)) * FOLDS // len(used)
    return folds


def _choose(photos: Integers, right: NDArray[np.bool_], most: int) -> Integers:
    """Returns at most `most` photos of a label, in order: the newest ones, then wrong before right ones.

    A photo that the model answers right teaches less: otherwise it would displace a correction.
    """
    if len(photos) <= most:
        return photos
    older, newest = np.split(photos, [len(photos) - int(NEWEST_SHARE * most)])
    room = most - len(newest)
    wrong = _space_evenly(older[~right[older]], room)
    others = _space_evenly(older[right[older]], room - len(wrong))
    return np.sort(np.concatenate([wrong, others, newest]))


def _space_evenly(photos: Integers, most: int) -> Integers:
    if len(photos) <= most:
        return photos
    return np.take(photos, np.linspace(0, len(photos) - 1, most).astype(int))
