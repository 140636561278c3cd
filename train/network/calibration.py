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

BINS = 15  # bins with the same number of photos: bins of equal width would leave some nearly empty
TEMPERATURES = np.geomspace(0.1, 10, 2001)  # steps of 0.23 %, finer than the photos can distinguish


def temperature(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """The temperature with the lowest cross-entropy, for probabilities [N, C] and labels [N]; 1 if N is 0."""
    if not len(labels):
        return 1.0
    log_probabilities = np.log(np.maximum(probabilities.astype(np.float64), 1e-30))
    label_entries = np.arange(len(labels)), labels

    def cross_entropy(value: float) -> float:
        scaled = log_probabilities / value
        scaled -= scaled.max(1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(1)) - scaled[label_entries]).mean())

    return float(min(TEMPERATURES, key=cross_entropy))


def apply_temperature(head: Sequence[keras.layers.Layer], value: float) -> None:
    """Divide the weights of the layer `logits` by a temperature."""
    for layer in head:
        if layer.name == "logits":
            layer.set_weights([weight / value for weight in layer.get_weights()])


def expected_calibration_error(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """The expected calibration error (ECE), from 0 to 1, over BINS bins with the same number of photos."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    return sum(share * abs(accuracy - mean) for share, mean, accuracy in reliability(confidence, correct))


def reliability(confidence: NDArray[Any], correct: NDArray[Any]) -> list[tuple[float, float, float]]:
    """For each bin: its share of the photos, their mean confidence, and their accuracy."""
    order = np.argsort(confidence, kind="stable")
    return [
        (len(rows) / len(order), float(confidence[rows].mean()), float(correct[rows].mean()))
        for rows in np.array_split(order, BINS)
        if len(rows)
    ]
