"""The convolution layers of a Keras model: find them, and run one at a time with other weights."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np
from numpy.typing import NDArray

from runtime.common.errors import UserError

Floats = NDArray[np.float32]

BATCH = 8  # photos
LARGE = 1_000_000  # weights of a Dense layer, 4 MB in float32


class QuantizeError(UserError):
    """A model whose convolution layers cannot be quantized."""


def conv_chain(model: keras.Model) -> list[keras.layers.Layer]:
    """The convolution and pooling layers from the first convolution to the head, in order.

    Raises QuantizeError when there is no convolution, or when one has strides, groups, dilation, another
    padding than "same" or another activation than ReLU.
    """
    layers = list(model.layers)
    start = next((i for i, layer in enumerate(layers) if isinstance(layer, keras.layers.Conv2D)), len(layers))
    chain: list[keras.layers.Layer] = []
    for layer in layers[start:]:
        if not isinstance(layer, (keras.layers.Conv2D, keras.layers.MaxPooling2D)):
            break
        chain.append(layer)
    convolutions = [layer for layer in chain if isinstance(layer, keras.layers.Conv2D)]
    for layer in convolutions:
        plain = layer.padding == "same" and layer.strides == (1, 1) and layer.dilation_rate == (1, 1)
        if not plain or layer.groups != 1 or layer.activation is not keras.activations.relu:
            raise QuantizeError(
                f"layer {layer.name}: int8 supports only convolutions with stride 1, same padding and ReLU; "
                "export without --int8"
            )
    if not convolutions:
        raise QuantizeError("the model has no convolution layer to quantize; export without --int8")
    return chain


def large_dense(model: keras.Model) -> list[keras.layers.Dense]:
    """The Dense layers that would take most of an int8 file if their weights stayed in float32."""
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    return [layer for layer in dense if layer.kernel.shape[0] * layer.kernel.shape[1] >= LARGE]


def conv_weights(layers: list[keras.layers.Layer]) -> dict[str, tuple[Floats, Floats]]:
    """The kernel [kh, kw, in, out] and bias [out] of each convolution, by layer name."""
    convolutions = [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)]
    return {layer.name: (np.asarray(layer.kernel), np.asarray(layer.bias)) for layer in convolutions}


def convolve(layer: keras.layers.Conv2D, inputs: Floats, kernel: Floats, bias: Floats) -> Floats:
    """The outputs [n, H, W, out] of a convolution with this kernel and bias, before the ReLU."""
    out = np.empty((*inputs.shape[:3], kernel.shape[3]), np.float32)
    for i, batch in enumerate(batches(inputs)):
        out[i * BATCH : i * BATCH + len(batch)] = keras.ops.conv(batch, kernel, padding=layer.padding) + bias
    return out


def run_layer(layer: keras.layers.Layer, inputs: NDArray[np.generic]) -> Floats:
    """The outputs of a layer or model for inputs [n, ...]."""
    return np.concatenate([np.asarray(layer(batch), np.float32) for batch in batches(inputs)])


def batches(array: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """Parts of at most BATCH rows of an array [n, ...], in order."""
    for start in range(0, len(array), BATCH):
        yield array[start : start + BATCH]
