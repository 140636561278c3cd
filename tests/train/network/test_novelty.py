from __future__ import annotations

import keras
import numpy as np
import pytest

from train.network.descriptor import describe, descriptor_layers
from train.network.novelty import (
    BACKGROUND_WEIGHT,
    LAST_LAYER_SCALE,
    SHRINKAGE,
    THRESHOLD,
    UNKNOWN_RATE,
    UNPENALIZED_SHARE,
    NoveltyModel,
    fit_novelty,
    novelty_layers,
    unknown_rate,
)

LAST_WIDTH = 12  # of 32 channels


def photos(count: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors [N, 32]; each class has four strong channels of the last layer."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    x = rng.gamma(2.0, 1.0, (count, 32))
    for label in range(classes):
        x[labels == label, 20 + 4 * label : 24 + 4 * label] += 8
    return describe_layers(x), labels


def unrelated(count: int, seed: int) -> np.ndarray:
    """Descriptors [N, 32] of pictures with other strong channels."""
    x = np.random.default_rng(seed).gamma(2.0, 1.0, (count, 32))
    x[:, 8:12] += 8
    return describe_layers(x)


def describe_layers(x: np.ndarray) -> np.ndarray:
    """Descriptors [N, 32] of two layers."""
    return describe([x[:, :-LAST_WIDTH], x[:, -LAST_WIDTH:]])


def fit(
    train: np.ndarray, labels: np.ndarray, val: np.ndarray, negatives: np.ndarray | None = None
) -> NoveltyModel:
    return fit_novelty(train, labels, val, negatives, last_width=LAST_WIDTH)


TRAIN, LABELS = photos(300, 0)
VAL, _ = photos(200, 1)
REJECTED = int(UNKNOWN_RATE * len(VAL)) / len(VAL)  # at most UNKNOWN_RATE of them
KNOWN = fit(TRAIN, LABELS, VAL)


def test_the_score_is_the_difference_of_two_mahalanobis_distances() -> None:
    scale = np.where(np.arange(32) < 32 - LAST_WIDTH, 1, LAST_LAYER_SCALE)
    u, x = TRAIN * scale, VAL * scale
    means = np.stack([u[label == LABELS].mean(0) for label in range(3)])
    within, everything = u - means[LABELS], u - u.mean(0)
    shrink = SHRINKAGE * within.var(0).mean() * np.eye(32)
    near = np.linalg.inv(within.T @ within / len(u) + shrink)
    far = np.linalg.inv(everything.T @ everything / len(u) + shrink)
    off = x - u.mean(0)
    distances = np.stack([(((x - mean) @ near) * (x - mean)).sum(1) for mean in means], 1).min(1)
    wanted = BACKGROUND_WEIGHT * ((off @ far) * off).sum(1) - distances
    np.testing.assert_allclose(KNOWN.score(VAL), wanted, rtol=1e-4, atol=1e-3)


def test_the_share_of_rejected_validation_photos_is_the_unknown_rate() -> None:
    assert unknown_rate(KNOWN(VAL), {"known": THRESHOLD}) == REJECTED
    few = fit(TRAIN, LABELS, VAL[:20])  # UNKNOWN_RATE of 20 photos is less than one
    assert unknown_rate(few(VAL[:20]), {"known": THRESHOLD}) == 0


def test_photos_of_no_class_are_rejected_as_unknown() -> None:
    assert unknown_rate(KNOWN(unrelated(100, 2)), {"known": THRESHOLD}) > 0.9
    assert unknown_rate(KNOWN(photos(100, 3)[0]), {"known": THRESHOLD}) < 0.1


def test_negatives_in_training_separate_pictures_that_resemble_a_class() -> None:
    """The class with its strong channels half as strong, and four channels of another layer."""

    def hard(seed: int) -> np.ndarray:
        x = np.random.default_rng(seed).gamma(2.0, 1.0, (200, 32))
        x[:, 20:24] += 6
        x[:, 8:12] += 3
        return describe_layers(x)

    with_negatives = fit(TRAIN, LABELS, VAL, hard(5))
    assert unknown_rate(with_negatives(VAL), {"known": THRESHOLD}) == REJECTED
    without, found = (unknown_rate(model(hard(6)), {"known": THRESHOLD}) for model in (KNOWN, with_negatives))
    assert found > 0.6 > 0.3 > without


def test_most_known_photos_have_the_score_of_the_distances_alone() -> None:
    """Otherwise, resembling negatives little would count more than resembling a class."""
    with_negatives = fit(TRAIN, LABELS, VAL, unrelated(50, 7))
    penalty = KNOWN.score(VAL) - with_negatives.score(VAL)
    assert (penalty < 1e-6).mean() == pytest.approx(UNPENALIZED_SHARE, abs=0.01)
    assert penalty.min() > -1e-6
    assert (KNOWN.score(unrelated(50, 8)) - with_negatives.score(unrelated(50, 8))).min() > penalty.max()


@pytest.mark.parametrize("negatives", [None, unrelated(50, 7)])
def test_the_layers_compute_known(negatives: np.ndarray | None) -> None:
    fitted = fit(TRAIN, LABELS, VAL, negatives)
    descriptor = keras.Input((32,))
    model = keras.Model(descriptor, novelty_layers(descriptor, fitted))
    found = model.predict_on_batch(VAL)
    assert found.shape == (len(VAL), 1) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], fitted(VAL), atol=1e-4)


def test_known_of_a_picture_that_activates_nothing_is_finite() -> None:
    means = keras.Input((32,))
    model = keras.Model(means, novelty_layers(descriptor_layers([means]), KNOWN))
    assert np.isfinite(model.predict_on_batch(np.zeros((1, 32), np.float32))).all()


def test_one_photo_per_class_is_enough() -> None:
    train, labels = photos(3, 4)
    one = fit(train, labels, VAL)
    assert np.isfinite(one(VAL)).all() and unknown_rate(one(VAL), {"known": THRESHOLD}) == REJECTED
    assert one.score(VAL).mean() > one.score(unrelated(100, 2)).mean()


def test_one_validation_photo_does_not_set_the_scales() -> None:
    """Its standard deviation is 0: no penalty for negatives, and weights beyond float16."""
    one, none = (fit(TRAIN, LABELS, VAL[:count], unrelated(50, 7)) for count in (1, 0))
    assert one.width == none.width > 1 and np.abs(one.negatives).max() > 0.1


def test_equal_photos_give_finite_values() -> None:
    equal = fit(np.ones((4, 32)), np.arange(4) % 2, VAL)
    assert np.isfinite(equal(VAL)).all()


@pytest.mark.parametrize("count", [6, 30])
def test_fewer_photos_than_channels_give_finite_values(count: int) -> None:
    train, labels = photos(count, 4)
    few = fit(train, labels, VAL[:5])
    assert np.isfinite(few(VAL)).all()
