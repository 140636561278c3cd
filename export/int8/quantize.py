"""Float convolutions → int8 convolutions that answer alike.

The network is quantized from its input to its last pooling, layer by layer: each layer is fitted to what the
quantized layers before it really give, on training photos. The head stays in float: it costs a thousandth of
the arithmetic, and its probabilities are finer than 1/256.

Weights are int8, per output channel, symmetric. Activations are uint8 codes, per tensor, zero point 0 after a
ReLU. (TFLite stores the same codes less 128.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from export.int8.activation_ranges import LEVELS, RANGES, SAMPLE
from runtime.common.errors import UserError
from train.linalg import factor_of_inverse, matmul

Floats = NDArray[np.float32]

BATCH = 8
POSITIONS = 150  # patches a photo that the rounding is fitted on
DAMPING = 0.1  # of the mean diagonal: less fits the calibration photos, and not the next ones
PAIR = 128  # the most that two neighbouring codes may sum to: see `paired`
LARGE = 1_000_000  # weights of a Dense layer: 4 MB in float
INPUT_RANGE = (-124.0, 152.0)  # what is left of 0-255 once the ImageNet mean is subtracted


class QuantizeError(UserError):
    """A model whose layers are not a chain that this code can quantize."""


@dataclass(frozen=True)
class Recipe:
    """How to choose codes and scales. The fields beside the name say what differs from the plainest way."""

    name: str
    activations: str = "max"  # how far the codes reach: a key of calibration.RANGES
    rounding: str = "nearest"  # of weights: a key of ROUNDINGS
    weights: str = "paired"  # which codes may be used: a key of CODES
    bias_correction: bool = False
    equalization: float = 0.0  # 0: channels as they are; 1: every channel reaches as far as the largest
    float_first: bool = True  # block1_conv1 in float: its three channels need not be squeezed into 256 steps


@dataclass(frozen=True)
class QuantParams:
    """real = scale · (code - zero_point), codes 0 to 255."""

    scale: float
    zero_point: int = 0


@dataclass(frozen=True)
class QuantizedConv:
    """A convolution whose weights are codes · scale exactly."""

    codes: NDArray[np.int8] | None  # [kh, kw, in, out]; None: left in float
    scale: Floats  # [out]
    kernel: Floats  # [kh, kw, in, out], codes · scale
    bias: Floats  # [out]
    input: QuantParams
    output: QuantParams


Quantized = Mapping[str, QuantizedConv]  # by layer name, in order


def quantize(
    model: keras.Model,
    photos: NDArray[np.uint8],
    recipe: Recipe,
    step: Callable[[int], None] = lambda done: None,
) -> Quantized:
    """Quantizes the model's convolutions on photos uint8 [n, H, W, 3]. Raises QuantizeError.

    `step` is called with n after each layer of `chain(model)`. Memory: about 50 MB a photo.
    """
    layers = conv_chain(model)
    first = next(layer for layer in layers if isinstance(layer, keras.layers.Conv2D))
    before = keras.Model(model.inputs[0], first.input)
    exact = np.concatenate([np.asarray(before(batch), np.float32) for batch in _batches(photos)])
    lower, upper = INPUT_RANGE
    scale = (upper - lower) / LEVELS
    codes_in = QuantParams(scale, round(-lower / scale))
    coded = exact if recipe.float_first else _coded(exact, codes_in)

    kernels = _equalized(layers, exact, recipe.equalization) if recipe.equalization else _weights(layers)
    quantized: dict[str, QuantizedConv] = {}
    for layer in layers:
        if isinstance(layer, keras.layers.MaxPooling2D):
            exact, coded = _run(layer, exact), _run(layer, coded)
            step(len(photos))
            continue
        kernel, bias = kernels[layer.name]
        if layer is first and recipe.float_first:
            codes, channel_scale, kept = None, np.ones(len(bias), np.float32), kernel
        else:
            channel_scale = CODES[recipe.weights](kernel)
            codes = ROUNDINGS[recipe.rounding](kernel, channel_scale, recipe, coded)
            kept = codes.astype(np.float32) * channel_scale
        wanted, found = _convolve(layer, exact, kernel, bias), _convolve(layer, coded, kept, bias)
        if recipe.bias_correction:
            # Rounding errors of weights meet activations that are never negative, so they do not cancel:
            # each channel is off by a constant, and the head averages everything else away.
            # Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019.
            off = wanted.mean((0, 1, 2), dtype=np.float64) - found.mean((0, 1, 2), dtype=np.float64)
            bias = (bias + off).astype(np.float32)
            found += off.astype(np.float32)
        exact, found = np.maximum(wanted, 0, out=wanted), np.maximum(found, 0, out=found)
        sample = np.random.default_rng(0).choice(found.ravel(), min(SAMPLE, found.size), shuffle=False)
        upper = RANGES[recipe.activations](sample, float(found.max()))
        codes_out = QuantParams(max(upper, 1e-6) / LEVELS)
        quantized[layer.name] = QuantizedConv(codes, channel_scale, kept, bias, codes_in, codes_out)
        coded, codes_in = _coded(found, codes_out), codes_out
        step(len(photos))
    return quantized


def conv_chain(model: keras.Model) -> list[keras.layers.Layer]:
    """The convolutions and poolings from the first convolution to the head. Raises QuantizeError."""
    layers = list(model.layers)
    start = next((i for i, layer in enumerate(layers) if isinstance(layer, keras.layers.Conv2D)), len(layers))
    found: list[keras.layers.Layer] = []
    for layer in layers[start:]:
        if not isinstance(layer, (keras.layers.Conv2D, keras.layers.MaxPooling2D)):
            break
        found.append(layer)
    convolutions = [layer for layer in found if isinstance(layer, keras.layers.Conv2D)]
    for layer in convolutions:
        plain = layer.padding == "same" and layer.strides == (1, 1) and layer.dilation_rate == (1, 1)
        if not plain or layer.groups != 1 or layer.activation is not keras.activations.relu:
            raise QuantizeError(
                f"{layer.name}: int8 takes stride 1, same padding and ReLU; export without --int8"
            )
    if not convolutions:
        raise QuantizeError("the model has no convolution to quantize; export without --int8")
    return found


def large_dense(model: keras.Model) -> list[keras.layers.Dense]:
    """Dense layers whose weights would make most of the file if they stayed in float."""
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    return [layer for layer in dense if layer.kernel.shape[0] * layer.kernel.shape[1] >= LARGE]


def with_weights(model: keras.Model, quantized: Quantized) -> keras.Model:
    """A copy of the model whose convolutions hold the values of the codes."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for name, conv in quantized.items():
        copy.get_layer(name).set_weights([conv.kernel, conv.bias])
    return copy


# Which codes: a kernel [kh, kw, in, out] → the scale of each output channel, [out].


def eight_bits(kernel: Floats) -> Floats:
    """Codes to ±127."""
    return _scale(np.abs(kernel).max((0, 1, 2)) / 127)


def seven_bits(kernel: Floats) -> Floats:
    """Codes to ±63: ONNX Runtime's `reduce_range`."""
    return _scale(np.abs(kernel).max((0, 1, 2)) / 63)


def paired_codes(kernel: Floats) -> Floats:
    """Codes to ±127, and no two neighbours that sum to more than ±128.

    x86 without VNNI multiplies two uint8 activations by two int8 weights at once and adds them in 16 bits
    (vpmaddubsw), which saturate at 32,767: 255 · 128 is the most that fits. Neighbours are input channels 2i
    and 2i+1. On VGG16 that makes a scale a seventh coarser; seven bits double it.
    """
    channels = kernel.shape[2] // 2 * 2
    sums = np.abs(kernel[:, :, 0:channels:2] + kernel[:, :, 1:channels:2])
    largest_sum = sums.max((0, 1, 2)) if channels else np.zeros(kernel.shape[3], np.float32)
    return _scale(np.maximum(np.abs(kernel).max((0, 1, 2)) / 127, largest_sum / PAIR))


CODES: dict[str, Callable[[Floats], Floats]] = {
    "8 bits": eight_bits,
    "7 bits": seven_bits,
    "paired": paired_codes,
}


# Rounding: the kernel, the scales, the recipe and the layer's coded inputs [n, H, W, in] → codes.


def nearest(kernel: Floats, scale: Floats, recipe: Recipe, inputs: Floats) -> NDArray[np.int8]:
    return _within(np.round(kernel / scale), recipe.weights).astype(np.int8)


def gptq(kernel: Floats, scale: Floats, recipe: Recipe, inputs: Floats) -> NDArray[np.int8]:
    """Weights are rounded in turn; those still to come make up for each error, as far as inputs correlate.

    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2023.
    The covariance is of the patches' differences from their mean: `bias_correction` sees to the mean.
    """
    patches = _patches(inputs, kernel.shape[:2])
    patches -= patches.mean(0)
    covariance = matmul(patches.T, patches).astype(np.float64) / len(patches)
    covariance[np.diag_indices_from(covariance)] += DAMPING * covariance.diagonal().mean() + 1e-9
    # Row i of the inverse's upper Cholesky factor says how weight i's error is spread over those after it.
    spread = factor_of_inverse(covariance)
    left = kernel.reshape(-1, kernel.shape[3]).astype(np.float64)
    codes = np.zeros_like(left)
    block = 128  # rows whose corrections are applied to the rest at once
    for start in range(0, len(left), block):
        stop = min(start + block, len(left))
        errors = np.zeros((stop - start, left.shape[1]))
        for i in range(start, stop):
            # Each code on its own, but the second of a pair with the first in sight.
            pair = codes[i - 1 : i + 1] if i % 2 and recipe.weights == "paired" else codes[i : i + 1]
            codes[i] = np.round(left[i] / scale)
            codes[i] = _within(pair.reshape(1, 1, -1, pair.shape[1]), recipe.weights)[0, 0, -1]
            errors[i - start] = (left[i] - codes[i] * scale) / spread[i, i]
            left[i + 1 : stop] -= np.outer(spread[i, i + 1 : stop], errors[i - start])
        left[stop:] -= matmul(spread[start:stop, stop:].T, errors)
    return codes.reshape(kernel.shape).astype(np.int8)


ROUNDINGS: dict[str, Callable[[Floats, Floats, Recipe, Floats], NDArray[np.int8]]] = {
    "nearest": nearest,
    "gptq": gptq,
}


def _within(codes: NDArray[Any], weights: str) -> NDArray[Any]:
    """Codes [kh, kw, in, out] brought to where they may be; of too large a pair, the second gives way."""
    limit = 63 if weights == "7 bits" else 127
    codes = np.clip(codes, -limit, limit)
    if weights == "paired":
        channels = codes.shape[2] // 2 * 2
        first, second = codes[:, :, 0:channels:2], codes[:, :, 1:channels:2]
        codes[:, :, 1:channels:2] = np.clip(second, -PAIR - first, PAIR - first)
    return codes


def _scale(scale: Floats) -> Floats:
    return np.maximum(scale, 1e-9).astype(np.float32)  # a channel of zeros has no scale of its own


def _weights(layers: list[keras.layers.Layer]) -> dict[str, tuple[Floats, Floats]]:
    """The kernel and bias of each convolution, by name."""
    convolutions = [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)]
    return {layer.name: (np.asarray(layer.kernel), np.asarray(layer.bias)) for layer in convolutions}


def _equalized(
    layers: list[keras.layers.Layer], inputs: Floats, strength: float
) -> dict[str, tuple[Floats, Floats]]:
    """Weights by layer, with every channel's reach drawn to the largest one's and the next layer undoing it.

    ReLU and max pooling let a positive factor through, so the network stays what it is. The last layer's
    channels are the head's, and stay. (Nagel et al., 2019, balance weights; here it is activations, since
    they are what shares one scale.)
    """
    kernels = _weights(layers)
    names = list(kernels)
    for layer in layers:
        if isinstance(layer, keras.layers.MaxPooling2D):
            inputs = _run(layer, inputs)
            continue
        kernel, bias = kernels[layer.name]
        inputs = np.maximum(_convolve(layer, inputs, kernel, bias), 0)
        if layer.name == names[-1]:
            break
        reach = inputs.max((0, 1, 2))
        factor = (np.maximum(reach, 0.02 * reach.max()) / reach.max()) ** strength
        after = names[names.index(layer.name) + 1]
        kernels[layer.name] = kernel / factor, bias / factor
        kernels[after] = kernels[after][0] * factor[:, np.newaxis], kernels[after][1]
        inputs = inputs / factor
    return kernels


def _coded(values: Floats, codes: QuantParams) -> Floats:
    """Real values rounded to what their codes stand for."""
    found = np.round(values / np.float32(codes.scale))
    found += codes.zero_point
    np.clip(found, 0, LEVELS, out=found)
    found -= codes.zero_point
    found *= np.float32(codes.scale)
    return np.asarray(found, np.float32)


def _convolve(layer: keras.layers.Conv2D, inputs: Floats, kernel: Floats, bias: Floats) -> Floats:
    """Before the ReLU."""
    out = np.empty((*inputs.shape[:3], kernel.shape[3]), np.float32)
    for i, batch in enumerate(_batches(inputs)):
        out[i * BATCH : i * BATCH + len(batch)] = keras.ops.conv(batch, kernel, padding=layer.padding) + bias
    return out


def _run(layer: keras.layers.Layer, inputs: Floats) -> Floats:
    return np.concatenate([np.asarray(layer(batch)) for batch in _batches(inputs)])


def _batches(array: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    for start in range(0, len(array), BATCH):
        yield array[start : start + BATCH]


def _patches(inputs: Floats, kernel: tuple[int, ...]) -> Floats:
    """[n · POSITIONS, kh · kw · in]: what the kernel sees at random places of [n, H, W, in]."""
    (height, width), (_, rows, columns, _) = kernel, inputs.shape
    rng = np.random.default_rng(0)
    found = []
    for photo in inputs:
        # "same" padding of an even kernel has its odd row below.
        above, left = (height - 1) // 2, (width - 1) // 2
        padded = np.pad(photo, ((above, height - 1 - above), (left, width - 1 - left), (0, 0)))
        count = min(POSITIONS, rows * columns)
        place = rng.choice(rows * columns, count, replace=False)
        row = (place // columns)[:, np.newaxis, np.newaxis] + np.arange(height)[:, np.newaxis]
        column = (place % columns)[:, np.newaxis, np.newaxis] + np.arange(width)
        found.append(padded[row, column].reshape(count, -1))
    return np.concatenate(found)
