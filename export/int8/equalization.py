"""Cross-layer equalization: give the channels of a layer similar ranges, because they share one scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from export.int8.layers import Floats, conv_weights, convolve, run_layer

MIN_FACTOR = 0.02  # smallest channel range, as a share of the largest, that is still equalized in full


@dataclass(frozen=True)
class Equalized:
    """A convolution after equalization. Its outputs are those of the model divided by `factors`."""

    kernel: Floats  # [kh, kw, in, out]
    bias: Floats  # [out]
    factors: Floats  # [out]
    mean: NDArray[np.float64]  # [out], of its outputs before the ReLU
    outputs: Floats  # [n, H, W, out], after the ReLU; valid until the next layer


def equalize(
    layers: list[keras.layers.Layer], inputs: Floats, strength: float, *, include_last: bool = False
) -> Iterator[tuple[keras.layers.Layer, Equalized | None]]:
    """Each layer with its equalized convolution, or None for pooling, while the float network runs.

    All convolutions together compute the same network with more equal channel ranges. Each channel is divided
    by (its maximum / the layer's maximum) ** strength, and the next layer multiplies by the same factor. ReLU
    and max pooling preserve positive factors, so the outputs stay the same. The channels of the last layer
    stay as they are, except with `include_last`: their means must then be multiplied by their factors.
    `inputs` [n, H, W, in] are the inputs of the first layer on calibration photos. After Nagel et al.,
    "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, which equalizes weights;
    here the activations are equalized.
    """
    weights = conv_weights(layers)
    last = list(weights)[-1]
    before = np.ones(1, np.float32)  # the factors of the layer's inputs
    for layer in layers:
        if isinstance(layer, keras.layers.MaxPooling2D):
            inputs = run_layer(layer, inputs)
            yield layer, None
            continue
        kernel, bias = weights[layer.name]
        kernel = kernel * before[:, np.newaxis]
        inputs = convolve(layer, inputs, kernel, bias)
        mean = channel_mean(inputs)
        np.maximum(inputs, 0, out=inputs)
        factors = np.ones(len(bias), np.float32)
        if strength and (include_last or layer.name != last):
            factors = _factors(inputs, strength)
            inputs /= factors
        yield layer, Equalized(kernel / factors, bias / factors, factors, mean / factors, inputs)
        before = factors


def _factors(outputs: Floats, strength: float) -> Floats:
    """The factor of each channel, [out], for outputs [n, H, W, out] after the ReLU."""
    maximum = outputs.max((0, 1, 2))
    largest = maximum.max()
    if not largest:  # no channel is active on these photos
        return np.ones_like(maximum)
    return np.asarray((np.maximum(maximum, MIN_FACTOR * largest) / largest) ** strength, np.float32)


def channel_mean(values: Floats) -> NDArray[np.float64]:
    """The mean of each channel of [n, H, W, C], as [C]. Only sums of one row are float32: converting all
    values takes three times as long.
    """
    mean: NDArray[np.float64] = values.sum(2).mean((0, 1), dtype=np.float64) / values.shape[2]
    return mean
