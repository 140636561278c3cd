"""Quantize the convolutions of a trained model to int8.

Layers are quantized in order, from the input to the last pooling layer. Each layer is fitted on the outputs
of the quantized layers before it, on calibration photos. The head stays in float32.

Weights are int8 codes with one scale per output channel. Activations are uint8 codes with one scale per
tensor; the zero point is 0 after a ReLU. (TFLite stores the same codes minus 128.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from export.int8.equalization import channel_mean, equalize
from export.int8.layers import Floats, conv_chain, convolve, run_layer
from export.int8.weight_codes import PAIRED_CODES, WeightCodes, round_to_nearest

LEVELS = 255  # steps between the 256 codes of an activation
ROUND_AT_ONCE = 1 << 16  # values, 256 kB
INPUT_RANGE = (-124.0, 152.0)  # pixels 0 to 255 after the ImageNet mean is subtracted

# The kernel [kh, kw, in, out], the scales [out], the codes and the quantized inputs [n, H, W, in] → codes.
Rounding = Callable[[Floats, Floats, WeightCodes, Floats], NDArray[np.int8]]
# Activations [n, H, W, out] after a ReLU → the largest value that a code stands for.
ActivationRange = Callable[[Floats], float]


def largest_activation(activations: Floats) -> float:
    """The maximum: no activation is clipped."""
    return float(activations.max())


@dataclass(frozen=True)
class Recipe:
    """How to choose codes and scales. The defaults are the plainest method."""

    name: str
    rounding: Rounding = round_to_nearest
    weight_codes: WeightCodes = PAIRED_CODES
    activation_range: ActivationRange = largest_activation
    bias_correction: bool = False
    equalization: float = 0.0  # 0: channels stay as they are; 1: every channel gets the largest range
    float_first: bool = True  # block1_conv1 stays in float32, so that pixels are not rounded to 256 steps
    equalize_last: bool = False  # where only channel means follow the last layer: they get the factors back


@dataclass(frozen=True)
class QuantParams:
    """real = scale * (code - zero_point), with codes 0 to 255."""

    scale: float
    zero_point: int = 0


@dataclass(frozen=True)
class QuantizedConv:
    """A convolution whose kernel is exactly codes * scale."""

    codes: NDArray[np.int8] | None  # [kh, kw, in, out]; None: the layer stays in float32
    scale: Floats  # [out]
    kernel: Floats  # [kh, kw, in, out]
    bias: Floats  # [out]
    input: QuantParams
    output: QuantParams
    factors: Floats  # [out]; the model's activations are the outputs of this convolution times these factors


Quantized = Mapping[str, QuantizedConv]  # by layer name, in order


def quantize(
    model: keras.Model,
    photos: NDArray[np.uint8],
    recipe: Recipe,
    step: Callable[[int], None] = lambda done: None,
) -> Quantized:
    """The model's convolutions quantized on calibration photos, uint8 [n, H, W, 3].

    Calls `step` with n after each layer of `conv_chain(model)`. Needs about 50 MB of memory per photo of
    224 x 224. Raises QuantizeError.
    """
    layers = conv_chain(model)
    exact = run_layer(keras.Model(model.inputs[0], layers[0].input), photos)
    lower, upper = INPUT_RANGE
    scale = (upper - lower) / LEVELS
    params = QuantParams(scale, round(-lower / scale))
    coded = exact if recipe.float_first else round_to_codes(exact.copy(), params)
    quantized: dict[str, QuantizedConv] = {}
    include_last = recipe.equalize_last and _only_means_follow(model, layers[-1])
    for layer, conv in equalize(layers, exact, recipe.equalization, include_last=include_last):
        if conv is None:
            coded = run_layer(layer, coded)
            step(len(photos))
            continue
        kernel, bias = conv.kernel, conv.bias
        if recipe.float_first and layer is layers[0]:
            codes, channel_scale, rounded = None, np.ones(len(bias), np.float32), kernel
            outputs = conv.outputs.copy()  # its inputs and its kernel are those of the float network
        else:
            channel_scale = recipe.weight_codes.scales(kernel)
            codes = recipe.rounding(kernel, channel_scale, recipe.weight_codes, coded)
            rounded = codes.astype(np.float32) * channel_scale
            outputs = convolve(layer, coded, rounded, bias)
            if recipe.bias_correction:
                # Activations are never negative, so rounding errors of weights add up to a constant per
                # channel. Nagel et al., 2019 (export/int8/equalization.py).
                offset = (conv.mean - channel_mean(outputs)).astype(np.float32)
                bias = bias + offset
                outputs += offset
            np.maximum(outputs, 0, out=outputs)
        output_params = QuantParams(max(recipe.activation_range(outputs), 1e-6) / LEVELS)
        quantized[layer.name] = QuantizedConv(
            codes, channel_scale, rounded, bias, params, output_params, conv.factors
        )
        coded, params = round_to_codes(outputs, output_params), output_params
        step(len(photos))
    return quantized


def with_weights(model: keras.Model, quantized: Quantized) -> keras.Model:
    """A copy of the model whose convolutions hold the quantized kernels and biases.

    Channel means of a pooling layer get the factors that equalization took from its channels.
    """
    factors = pool_factors(model, quantized)

    def call(layer: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        output = layer(*args, **kwargs)
        if isinstance(layer, keras.layers.GlobalAveragePooling2D):
            source = args[0]._keras_history.operation.name
            if np.ptp(factor := factors.get(source, np.ones(1))):  # factors of 1 change nothing
                return keras.layers.Rescaling(factor.tolist(), name=f"{layer.name}_factors")(output)
        return output

    copy = keras.models.clone_model(model, call_function=call)
    copy.set_weights(model.get_weights())
    for name, conv in quantized.items():
        copy.get_layer(name).set_weights([conv.kernel, conv.bias])
    return copy


def _only_means_follow(model: keras.Model, last: keras.layers.Layer) -> bool:
    """Whether all layers that take the outputs of `last` are channel means, which can get factors back."""
    following = [
        layer
        for layer in model.layers
        if layer is not last and any(tensor is last.output for tensor in keras.tree.flatten(layer.input))
    ]
    return all(isinstance(layer, keras.layers.GlobalAveragePooling2D) for layer in following)


def pool_factors(model: keras.Model, quantized: Quantized) -> dict[str, Floats]:
    """By name of a pooling layer, the factors of its channels."""
    factors: dict[str, Floats] = {}
    last = np.ones(1, np.float32)
    for layer in conv_chain(model):
        if layer.name in quantized:
            last = quantized[layer.name].factors
        else:
            factors[layer.name] = last
    return factors


def round_to_codes(values: Floats, params: QuantParams) -> Floats:
    """Real values, in C order, rounded in place to the values that codes stand for.

    Parts of the array stay in the processor's cache between the operations.
    """
    scale, flat = np.float32(params.scale), values.reshape(-1)
    for start in range(0, len(flat), ROUND_AT_ONCE):
        part = flat[start : start + ROUND_AT_ONCE]
        part /= scale
        np.rint(part, out=part)
        part += params.zero_point
        np.maximum(part, 0, out=part)
        np.minimum(part, LEVELS, out=part)
        part -= params.zero_point
        part *= scale
    return flat.reshape(values.shape)
