from __future__ import annotations

import keras
import numpy as np
import pytest

from train.network.calibration import apply_temperature, expected_calibration_error, reliability, temperature


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def drawn(count: int, sharper: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels sampled from probabilities, and the probabilities after a factor on their logits."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((count, 4)) * 2
    labels = (softmax(logits).cumsum(1) > rng.random((count, 1))).argmax(1)
    return softmax(sharper * logits), labels


@pytest.mark.parametrize("sharper", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_factor_on_the_logits(sharper: float) -> None:
    probabilities, labels = drawn(10_000, sharper)
    found = temperature(probabilities, labels)
    assert found == pytest.approx(sharper, rel=0.05)
    calibrated = softmax(np.log(probabilities) / found)
    assert expected_calibration_error(calibrated, labels) < 0.02
    if sharper == 3.0:
        assert expected_calibration_error(probabilities, labels) > 0.1


def test_without_photos_the_temperature_is_1() -> None:
    assert temperature(np.empty((0, 3)), np.empty(0, int)) == 1.0


def test_apply_temperature_divides_the_logits() -> None:
    head = [keras.layers.Dense(3, name="logits"), keras.layers.Softmax()]
    model = keras.Sequential([keras.Input((5,)), *head])
    x = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    before = model.predict_on_batch(x)
    apply_temperature(head, 2.0)
    np.testing.assert_allclose(model.predict_on_batch(x), softmax(np.log(before) / 2), rtol=1e-5)


def test_calibration_error_by_hand() -> None:
    # Thirty photos at 90 %, of which 60 % are right: off by 0.3 however they fall into bins of two.
    probabilities = np.tile([[0.9, 0.1]], (30, 1))
    labels = np.array([0, 1] * 6 + [0] * 18)
    bins = reliability(probabilities.max(1), probabilities.argmax(1) == labels)
    assert len(bins) == 15 and sum(share for share, _, _ in bins) == pytest.approx(1)
    assert expected_calibration_error(probabilities, np.array([0] * 27 + [1] * 3)) == pytest.approx(
        0.18, abs=0.02
    )
    assert expected_calibration_error(np.array([[1.0, 0.0]] * 15), np.zeros(15, int)) == 0
