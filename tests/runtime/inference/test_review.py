"""The reason to look at a picture, its score, and near-duplicates."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.inference.review import ReviewItem, is_near, review_reason, review_score


def item(
    id: str, best: float, *, known: bool | None = True, changed: bool = False, seed: int = 0
) -> ReviewItem:
    features = np.random.default_rng(seed).uniform(0.5, 1.5, 50)
    return ReviewItem(id, np.array([best, 1 - best, 0.0]), known, features, changed)


@pytest.mark.parametrize(
    ("best", "known", "changed", "reason"),
    [
        (0.99, True, False, ""),
        (0.99, None, False, ""),
        (0.7, True, False, "low margin"),
        (0.99, False, False, "unknown"),
        (0.7, False, True, "unknown"),
        (0.99, True, True, "changed"),
    ],
)
def test_the_reason(best: float, known: bool | None, changed: bool, reason: str) -> None:
    assert review_reason(item("x", best, known=known, changed=changed)) == reason


def test_the_most_useful_picture_has_the_highest_score() -> None:
    items = [
        item("sure", 0.999, seed=1),
        item("changed", 0.95, changed=True, seed=2),
        item("unknown", 0.95, known=False, seed=3),
        item("two classes", 0.51, seed=4),
        item("unsure", 0.72, seed=5),
    ]
    ranked = sorted(items, key=review_score, reverse=True)
    assert [each.id for each in ranked] == ["two classes", "unknown", "unsure", "changed", "sure"]
    assert all(0 <= review_score(each) <= 1 for each in items)


def test_a_picture_with_a_little_noise_is_a_near_duplicate() -> None:
    first, other = item("first", 0.6, seed=1), item("other", 0.6, seed=2)
    noise = np.random.default_rng(3).normal(0, 0.1, 50)
    assert is_near(first.features + noise, first.features)
    assert not is_near(other.features, first.features)
