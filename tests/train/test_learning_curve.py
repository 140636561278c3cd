from __future__ import annotations

import numpy as np
import pytest

from tests.train.pooled_features import pooled_features
from train.learning_curve import MIN_CLASS_PHOTOS, PARTS, LearningCurve, _gain, learning_curve


def test_the_gain_continues_a_power_law() -> None:
    sizes = np.array(PARTS) * 100.0
    errors = np.stack([2 * sizes**-0.4, np.full(4, 0.1), np.array([0.1, 0.2, 0.3, 0.4]), np.zeros(4)])
    gains = _gain(sizes, errors, 1600)
    assert gains[0] == pytest.approx(2 * 1600**-0.4 - 2 * 3200**-0.4)
    np.testing.assert_allclose(gains[1:], 0, atol=1e-12)


def test_more_photos_are_more_accurate_up_to_their_limit() -> None:
    features, labels = pooled_features(240, 0.25)
    curve = learning_curve(features, labels, 3)
    assert curve is not None
    assert [point.photos for point in curve.points] == [30, 60, 120, 225]
    accuracies = [point.accuracy for point in curve.points]
    assert accuracies[0] < accuracies[-1]
    for point in curve.points:
        assert point.interval[0] < point.accuracy < point.interval[1] < point.interval[0] + 0.2
    assert curve.interval[0] <= curve.gain <= curve.interval[1]
    # Measured instead of estimated: the accuracy of the same fit on twice as many photos.
    twice = learning_curve(*pooled_features(480, 0.25), 3)
    assert twice is not None
    measured = twice.points[-1].accuracy - accuracies[-1]
    assert curve.interval[0] - 0.02 < measured < curve.interval[1] + 0.02


def test_no_mistake_is_no_certainty() -> None:
    features, labels = pooled_features(60, 9.0)
    curve = learning_curve(features, labels, 3)
    assert curve is not None and curve.points[-1].accuracy == 1
    assert curve.points[-1].interval == (pytest.approx(0.94, abs=0.01), 1.0)  # Wilson
    assert "they do not show whether more would help" in curve.sentence


def test_classes_with_few_photos_have_no_curve() -> None:
    features, labels = pooled_features(3 * MIN_CLASS_PHOTOS - 1, 0.3)
    assert learning_curve(features, labels, 3) is None
    assert learning_curve(*pooled_features(3 * MIN_CLASS_PHOTOS, 0.3), 3) is not None


@pytest.mark.parametrize(
    ("gain", "interval", "text"),
    [
        (0.0154, (0.008, 0.0221), "add about 1.5 points (95 % interval 0.8 to 2.2)"),
        (0.002, (0.0, 0.004), "add less than 0.5 points"),
    ],
)
def test_the_sentence_gives_points(gain: float, interval: tuple[float, float], text: str) -> None:
    assert LearningCurve((), gain, interval).sentence == f"twice as many training photos would {text}"
