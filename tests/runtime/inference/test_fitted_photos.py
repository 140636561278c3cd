"""A fit of many photos uses the corrections and the newest photos first."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.inference import fitted_photos
from runtime.inference.fitted_photos import fold_numbers


def test_few_photos_are_all_used_in_folds_in_a_row() -> None:
    folds = fold_numbers(np.array([0] * 20 + [1] * 10), np.ones(30, bool))
    assert list(folds) == [*np.repeat(range(5), 4), *np.repeat(range(5), 2)]


def test_many_photos_are_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted_photos, "MAX_FITTED", 30)
    folds = fold_numbers(np.array([0] * 100 + [3] * 12 + [-1] * 9), np.ones(121, bool))
    used = {
        label: (folds[at] >= 0).sum()
        for label, at in ((0, slice(0, 100)), (3, slice(100, 112)), (-1, slice(112, 121)))
    }
    assert sum(used.values()) <= 30 and min(used.values()) == 9 and set(folds) == set(range(-1, 5))
    assert np.diff(np.flatnonzero(folds[:100] >= 0)).max() <= 14


def test_wrong_and_newest_photos_are_used_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted_photos, "MAX_FITTED", 20)
    right = np.ones(100, bool)
    right[[3, 41, 42, 77]] = False
    used = set(np.flatnonzero(fold_numbers(np.zeros(100, int), right) >= 0))
    assert len(used) == 20 and {3, 41, 42, 77, *range(95, 100)} <= used


def test_too_many_wrong_photos_are_evenly_spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted_photos, "MAX_FITTED", 20)
    right = np.arange(100) % 2 == 0
    used = np.flatnonzero(fold_numbers(np.zeros(100, int), right) >= 0)
    assert len(used) == 20 and not right[used[used < 95]].any() and np.diff(used).max() <= 8
