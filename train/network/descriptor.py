"""The descriptor of a picture: channel means of all five pooling layers, the input of head and detector.

Several layers separate unrelated pictures better than the last layer alone (Lee et al., "A Simple Unified
Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", 2018). Each part is divided by
its mean before the square root, so its root mean square is 1: the contrast of a photo does not change it,
strong channels do not dominate, and every value fits float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

SMALLEST_MEAN = 1e-3  # of a part, for a picture that activates nothing


def channel_means(pool: keras.KerasTensor, name: str | None = None) -> keras.KerasTensor:
    """[N, height, width, W] → [N, W]: the means over positions, float32.

    A layer, because the name of an operation can occur in the saved model whose layers it is put on.
    """
    return keras.layers.GlobalAveragePooling2D(dtype="float32", name=name)(pool)


def describe(means: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """The descriptors [N, D] for `channel_means` of each pooling layer, [N, W] each, from block 1 to 5.

    D is the sum of all W. The last W values belong to block 5, the input of the head.
    """
    parts = [layer.astype(np.float32) for layer in means]
    return np.concatenate(
        [np.sqrt(part / np.maximum(part.mean(1, keepdims=True), SMALLEST_MEAN)) for part in parts], axis=1
    )


def descriptor_layers(means: Sequence[keras.KerasTensor]) -> keras.KerasTensor:
    """`describe` as layers, float32 [N, D]."""
    parts = [
        keras.ops.sqrt(part / keras.ops.maximum(keras.ops.mean(part, axis=1, keepdims=True), SMALLEST_MEAN))
        for part in means
    ]
    return keras.layers.Concatenate(name="features")(parts) if len(parts) > 1 else parts[0]
