from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from tests.train.pooled_features import pooled_features
from train.linear_probe import Blocks, _fit, cross_validate, divide


@pytest.fixture(scope="module")
def blocks() -> Blocks:
    return divide(*pooled_features(120, 0.7), classes=3, blocks=4)


def test_blocks_have_the_same_share_of_each_class(blocks: Blocks) -> None:
    assert [of.counts.tolist() for of in blocks.moments] == [[10, 10, 10]] * 4
    assert sorted(np.concatenate([blocks.rows(number) for number in range(4)])) == list(range(120))


def test_a_fit_on_some_blocks_is_the_discriminant_analysis_of_their_photos(
    blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.linear_probe.SHRINKAGE", 1e-9)
    rows = np.concatenate([blocks.rows(0), blocks.rows(2)])
    measured = blocks.rows(1)
    reference = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(3, 1 / 3))
    reference.fit(blocks.features[rows], blocks.labels[rows])
    own = blocks.logits([0, 2], measured)
    expected = reference.decision_function(blocks.features[measured])
    expected -= expected.mean(1, keepdims=True)
    np.testing.assert_allclose(own - own.mean(1, keepdims=True), expected, atol=1e-3)


def test_probabilities_are_of_a_classifier_that_has_not_seen_the_photo(blocks: Blocks) -> None:
    probabilities = cross_validate(blocks)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    accuracy = (probabilities.argmax(1) == blocks.labels).mean()
    assert 0.8 < accuracy < 1
    assert abs(probabilities.max(1).mean() - accuracy) < 0.06, "calibrated"
    random = divide(pooled_features(120, 0)[0], blocks.labels, classes=3, blocks=4)
    assert (cross_validate(random).argmax(1) == blocks.labels).mean() < 0.5


def test_a_class_without_a_photo_is_never_the_answer(blocks: Blocks) -> None:
    features, labels = pooled_features(60, 0.3)
    more = divide(features, labels, classes=4, blocks=2)
    assert np.isneginf(more.logits([0, 1], more.rows(0))[:, 3]).all()
    assert (cross_validate(more)[:, 3] == 0).all()


def test_equal_photos_can_be_fitted() -> None:
    weights, offset = _fit(divide(np.ones((8, 5)), np.arange(8) % 2, classes=2, blocks=2).moments)
    assert np.isfinite(weights).all() and np.isfinite(offset).all()
