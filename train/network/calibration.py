"""Calibrate the probabilities: of the photos with a probability of 80 %, 80 % should be classified correctly.

Temperature scaling (Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017)
divides all logits by one number, which changes no photo's top-1 class. The weights of the layer `logits` are
divided by it, so the model needs no extra operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

BINS = 15  # at most, with the same number of photos: bins of equal width would leave some nearly empty
PHOTOS_PER_BIN = 20  # at least: the accuracy of fewer photos is mostly chance, which the error adds up
TEMPERATURES = np.geomspace(0.1, 10, 2001)  # steps of 0.23 %, finer than the photos can distinguish


def temperature(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """The temperature with the lowest cross-entropy, for probabilities [N, C] and labels [N]; 1 if N is 0.

    Without a mistake among the photos, the cross-entropy falls without end. Then each label gets the
    probability (N + 1) / (N + 2), by Laplace's rule of succession: one mistake among two more photos.
    """
    count, classes = probabilities.shape
    if not count:
        return 1.0
    log_probabilities = np.log(np.maximum(probabilities.astype(np.float64), 1e-30))

    def best(targets: NDArray[np.float64]) -> float:
        def cross_entropy(value: float) -> float:
            scaled = log_probabilities / value
            scaled -= scaled.max(1, keepdims=True)
            return float((np.log(np.exp(scaled).sum(1)) - (targets * scaled).sum(1)).mean())

        return float(min(TEMPERATURES, key=cross_entropy))

    targets = np.eye(classes)[labels]
    found = best(targets)
    if found in (TEMPERATURES[0], TEMPERATURES[-1]):
        found = best(targets * (count + 1) / (count + 2) + (1 - targets) / (count + 2) / max(classes - 1, 1))
    return found


def apply_temperature(head: Sequence[keras.layers.Layer], value: float) -> None:
    """Divide the weights of the layer `logits` by a temperature."""
    for layer in head:
        if layer.name == "logits":
            layer.set_weights([weight / value for weight in layer.get_weights()])


def expected_calibration_error(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """The expected calibration error (ECE), from 0 to 1, over bins with the same number of photos."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    return sum(share * abs(accuracy - mean) for share, mean, accuracy in reliability(confidence, correct))


def reliability(confidence: NDArray[Any], correct: NDArray[Any]) -> list[tuple[float, float, float]]:
    """For each bin: its share of the photos, their mean confidence, and their accuracy."""
    order = np.argsort(confidence, kind="stable")
    bins = max(1, min(BINS, len(order) // PHOTOS_PER_BIN))
    return [
        (len(rows) / len(order), float(confidence[rows].mean()), float(correct[rows].mean()))
        for rows in np.array_split(order, bins)
        if len(rows)
    ]
