"""VGG16's layers one at a time, with activations in float16 to halve their memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from train.network.vgg import BLOCKS, CONVOLUTIONS, MEAN_RGB

Tensors = Mapping[str, NDArray[Any]]  # kernels and biases by name, as in train.network.vgg.Weights

BATCH = 8
FLOAT16_MAX = 65504  # VGG16's activations reach a quarter of it


def subtract_mean(photos: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Photos [n, H, W, 3] minus ImageNet's mean: the input of the first convolution."""
    return photos.astype(np.float16) - np.array(MEAN_RGB, np.float16)


def convolve(
    inputs: NDArray[Any], name: str, kernel: NDArray[np.float32], bias: NDArray[np.float32]
) -> NDArray[np.float16]:
    """The convolution `name`, its ReLU and, at the end of a block, its pooling, of inputs [n, H, W, c]."""
    pool = 2 if name.endswith(f"conv{len(BLOCKS[int(name[5]) - 1])}") else 1
    n, rows, columns, _ = inputs.shape
    outputs = np.empty((n, rows // pool, columns // pool, len(bias)), np.float16)
    for start in range(0, n, BATCH):
        batch = inputs[start : start + BATCH].astype(np.float32)
        y = keras.ops.relu(keras.ops.conv(batch, kernel, padding="same") + bias)
        y = keras.ops.max_pool(y, pool, strides=pool) if pool > 1 else y
        outputs[start : start + BATCH] = np.minimum(keras.ops.convert_to_numpy(y), FLOAT16_MAX)
    return outputs


def pooled_features(tensors: Tensors, photos: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The mean over block5_pool's positions, [n, c], scaled to length 1, for photos [n, H, W, 3]."""
    return features_after(subtract_mean(photos), list(CONVOLUTIONS), tensors)


def features_after(inputs: NDArray[Any], names: Sequence[str], tensors: Tensors) -> NDArray[np.float64]:
    """`pooled_features` of the inputs of the first of the convolutions `names`, which end with the last."""
    for name in names:
        inputs = convolve(inputs, name, tensors[f"{name}/kernel"], tensors[f"{name}/bias"])
    return unit_length(inputs.astype(np.float32).mean((1, 2)))


def unit_length(pooled: NDArray[Any]) -> NDArray[np.float64]:
    """Features [n, c] scaled to length 1, as in the pooled head."""
    exact = pooled.astype(np.float64)
    return np.asarray(exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-9), np.float64)
