"""The descriptor of a picture: channel statistics of all five pooling layers, the input of head and detector.

Statistics of several layers separate unrelated pictures better than the last layer alone (Lee et al., "A
Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", 2018, and Gram
statistics, Sastry & Oore, 2020). Each part is divided by its mean before the square root, so its root mean
square is 1: the contrast of a photo does not change it, and every value fits float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

SMALLEST_MEAN = 1e-3  # of a part, for a picture that activates nothing


def pool_statistics(pool: keras.KerasTensor) -> keras.KerasTensor:
    """[N, height, width, W] → [N, 2, W]: the means and the standard deviations over positions, float32."""
    x = keras.ops.cast(pool, "float32")
    return keras.ops.stack([keras.ops.mean(x, axis=(1, 2)), keras.ops.std(x, axis=(1, 2))], axis=1)


def describe(statistics: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """The descriptors [N, D] for `pool_statistics` of each pooling layer, [N, 2, W] each, from block 1 to 5.

    D is twice the sum of all W. The means of block 5, the input of the head, are the last W but one part.
    """
    parts = [layer[:, row].astype(np.float32) for layer in statistics for row in (0, 1)]
    return np.concatenate(
        [np.sqrt(part / np.maximum(part.mean(1, keepdims=True), SMALLEST_MEAN)) for part in parts], axis=1
    )
