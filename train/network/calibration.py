"""Make a probability mean what it says: of the photos called 80 % sure, 80 % should be right.

Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017: all logits are divided
by one temperature, which moves no photo's top-1. It is folded into the layer that gives the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

BINS = 15  # each of as many photos: bins of equal width would leave some nearly empty
TEMPERATURES = np.geomspace(0.1, 10, 2001)  # steps of 0.23 %, far finer than the photos can tell


def temperature(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """The one that makes the labels [N] likeliest, for probabilities [N, C]; 1 when there are none."""
    if not len(labels):
        return 1.0
    logs = np.log(np.maximum(probabilities.astype(np.float64), 1e-30))
    right = np.arange(len(labels)), labels

    def loss(value: float) -> float:
        scaled = logs / value
        scaled -= scaled.max(1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(1)) - scaled[right]).mean())

    return float(min(TEMPERATURES, key=loss))


def apply_temperature(head: Sequence[keras.layers.Layer], value: float) -> None:
    """Divide what the layer `logits` gives by a temperature, in its weights."""
    for layer in head:
        if layer.name == "logits":
            layer.set_weights([weight / value for weight in layer.get_weights()])


def expected_calibration_error(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Expected calibration error over BINS bins of equal mass, from 0 to 1."""
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    return sum(share * abs(is_right - is_sure) for share, is_sure, is_right in reliability(sure, right))


def reliability(sure: NDArray[Any], right: NDArray[Any]) -> list[tuple[float, float, float]]:
    """By bin: its share of the photos, their mean probability, and how many of them are right."""
    order = np.argsort(sure, kind="stable")
    return [
        (len(part) / len(order), float(sure[part].mean()), float(right[part].mean()))
        for part in np.array_split(order, BINS)
        if len(part)
    ]
