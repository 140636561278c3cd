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


def test_few_photos_of_a_calibrated_model_have_a_small_error() -> None:
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(50):
        confidence = rng.uniform(0.6, 1, 30)
        probabilities = np.stack([confidence, 1 - confidence], 1)
        errors.append(expected_calibration_error(probabilities, (rng.random(30) > confidence).astype(int)))
    assert np.mean(errors) < 0.1  # with 15 bins: 0.22


@pytest.mark.parametrize("count", [6, 50, 400])
def test_photos_without_a_mistake_do_not_make_the_model_certain(count: int) -> None:
    """Cross-entropy alone would choose the lowest temperature, and probabilities of nearly 1."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    probabilities = softmax(2 * np.eye(3)[labels] + rng.uniform(0, 0.5, (count, 3)))
    assert (probabilities.argmax(1) == labels).all()
    calibrated = softmax(np.log(probabilities) / temperature(probabilities, labels))
    assert calibrated.max(1).mean() == pytest.approx((count + 1) / (count + 2), abs=0.01)


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
    # Photos at 90 %, of which 60 % are right in each bin: off by 0.3.
    probabilities = np.tile([[0.9, 0.1]], (300, 1))
    labels = np.tile([0, 1, 0, 1, 0], 60)
    bins = reliability(probabilities.max(1), probabilities.argmax(1) == labels)
    assert len(bins) == 15 and sum(share for share, _, _ in bins) == pytest.approx(1)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.3)
    assert expected_calibration_error(np.array([[1.0, 0.0]] * 15), np.zeros(15, int)) == 0
