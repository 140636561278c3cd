"""Cross-layer equalization: give the channels of a layer similar ranges, because they share one scale."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np

from export.int8.layers import Floats, conv_weights, convolve, run_layer

MIN_FACTOR = 0.02  # smallest channel range, as a share of the largest, that is still equalized in full


@dataclass(frozen=True)
class Equalized:
    """A convolution after equalization. Its outputs are those of the model divided by `factors`."""

    kernel: Floats  # [kh, kw, in, out]
    bias: Floats  # [out]
    factors: Floats  # [out]


def equalize(layers: list[keras.layers.Layer], inputs: Floats, strength: float) -> dict[str, Equalized]:
    """The convolutions by layer name that compute the same network with more equal channel ranges.

    Each channel is divided by (its maximum / the layer's maximum) ** strength, and the next layer multiplies
    by the same factor. ReLU and max pooling preserve positive factors, so the outputs stay the same. The
    channels of the last layer feed the head and stay as they are. `inputs` [n, H, W, in] are the inputs of
    the first layer on calibration photos. After Nagel et al., "Data-Free Quantization Through Weight
    Equalization and Bias Correction", 2019, which equalizes weights; here the activations are equalized.
    """
    weights = conv_weights(layers)
    factors = {name: np.ones(len(bias), np.float32) for name, (_, bias) in weights.items()}
    names = list(weights)
    for layer in layers:
        if isinstance(layer, keras.layers.MaxPooling2D):
            inputs = run_layer(layer, inputs)
            continue
        kernel, bias = weights[layer.name]
        inputs = np.maximum(convolve(layer, inputs, kernel, bias), 0)
        if layer.name == names[-1]:
            break
        maximum = inputs.max((0, 1, 2))
        factor = (np.maximum(maximum, MIN_FACTOR * maximum.max()) / maximum.max()) ** strength
        following = names[names.index(layer.name) + 1]
        weights[layer.name], factors[layer.name] = (kernel / factor, bias / factor), factor
        weights[following] = weights[following][0] * factor[:, np.newaxis], weights[following][1]
        inputs = inputs / factor
    return {name: Equalized(*weights[name], factors[name]) for name in names}
