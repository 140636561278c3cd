from __future__ import annotations

import keras
import numpy as np
import pytest

from train.network.novelty import (
    BACKGROUND_WEIGHT,
    SHRINKAGE,
    THRESHOLD,
    UNKNOWN_RATE,
    fit_novelty,
    novelty_layers,
    unit_square_roots,
    unknown_rate,
)


def photos(count: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features [N, 32]; each class has four strong channels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    x = rng.gamma(2.0, 1.0, (count, 32))
    for label in range(classes):
        x[labels == label, 4 * label : 4 * label + 4] += 8
    return x, labels


TRAIN, LABELS = photos(300, 0)
VAL, _ = photos(100, 1)
KNOWN = fit_novelty(TRAIN, LABELS, VAL)


def test_the_score_is_the_difference_of_two_mahalanobis_distances() -> None:
    u, x = unit_square_roots(TRAIN), unit_square_roots(VAL)
    means = np.stack([u[label == LABELS].mean(0) for label in range(3)])
    within, everything = u - means[LABELS], u - u.mean(0)
    shrink = SHRINKAGE * within.var(0).mean() * np.eye(32)
    near = np.linalg.inv(within.T @ within / len(u) + shrink)
    far = np.linalg.inv(everything.T @ everything / len(u) + shrink)
    off = x - u.mean(0)
    distances = np.stack([(((x - mean) @ near) * (x - mean)).sum(1) for mean in means], 1).min(1)
    wanted = BACKGROUND_WEIGHT * ((off @ far) * off).sum(1) - distances
    np.testing.assert_allclose(KNOWN.score(VAL), wanted, rtol=1e-4, atol=1e-3)


def test_two_percent_of_the_validation_photos_are_rejected_as_unknown() -> None:
    assert unknown_rate(KNOWN(VAL), {"known": THRESHOLD}) == UNKNOWN_RATE
    few = fit_novelty(TRAIN, LABELS, VAL[:20])  # 2 % of 20 photos is less than one
    assert unknown_rate(few(VAL[:20]), {"known": THRESHOLD}) == 0


def test_photos_of_no_class_are_rejected_as_unknown() -> None:
    rng = np.random.default_rng(2)
    other = rng.gamma(2.0, 1.0, (100, 32))
    other[:, 20:24] += 8
    assert unknown_rate(KNOWN(other), {"known": THRESHOLD}) > 0.9
    assert unknown_rate(KNOWN(photos(100, 3)[0]), {"known": THRESHOLD}) < 0.1


def test_the_layers_compute_known() -> None:
    pool = keras.Input((32,))
    model = keras.Model(pool, novelty_layers(pool, KNOWN))
    found = model.predict_on_batch(VAL.astype(np.float32))
    assert found.shape == (100, 1) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], KNOWN(VAL), atol=1e-4)


def test_known_of_zero_features_is_finite() -> None:
    pool = keras.Input((32,))
    model = keras.Model(pool, novelty_layers(pool, KNOWN))
    assert np.isfinite(model.predict_on_batch(np.zeros((1, 32), np.float32))).all()


def test_one_photo_per_class_is_enough() -> None:
    train, labels = photos(3, 4)
    one = fit_novelty(train, labels, VAL)
    assert np.isfinite(one(VAL)).all() and unknown_rate(one(VAL), {"known": THRESHOLD}) == UNKNOWN_RATE
    assert one.score(VAL).mean() > one.score(np.random.default_rng(2).gamma(2.0, 1.0, (100, 32))).mean()


def test_equal_photos_give_finite_values() -> None:
    equal = fit_novelty(np.ones((4, 32)), np.arange(4) % 2, VAL)
    assert np.isfinite(equal(VAL)).all()


@pytest.mark.parametrize("count", [6, 30])
def test_fewer_photos_than_channels_give_finite_values(count: int) -> None:
    train, labels = photos(count, 4)
    few = fit_novelty(train, labels, VAL[:5])
    assert np.isfinite(few(VAL)).all()
