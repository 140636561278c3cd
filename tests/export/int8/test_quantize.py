from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from export.int8 import quantize as module
from export.int8.quantize import (
    CODES,
    PAIR,
    Quantized,
    QuantizeError,
    Recipe,
    conv_chain,
    gptq,
    nearest,
    quantize,
)
from runtime.inference.engines import ENGINES

if TYPE_CHECKING:
    import keras

BEST = Recipe("gptq-equalized", rounding="gptq", bias_correction=True, equalization=0.5)


@pytest.fixture(scope="module")
def quantized(model: keras.Model, pictures: NDArray[np.uint8]) -> Quantized:
    return quantize(model, pictures, BEST)


def correlated(channels: int) -> NDArray[np.float32]:
    """Inputs [n, H, W, channels] as a network's are: neighbours alike, never negative."""
    random = np.random.default_rng(0)
    few = np.maximum(random.normal(1, 1, (16, 12, 12, 3)), 0)
    return (few @ np.abs(random.normal(0, 1, (3, channels)))).astype(np.float32)


@pytest.mark.parametrize(("weights", "limit"), [("8 bits", 127), ("7 bits", 63), ("paired", 127)])
@pytest.mark.parametrize("rounding", [nearest, gptq])
def test_codes_stay_where_they_may_be(rounding: object, weights: str, limit: int) -> None:
    kernel = np.random.default_rng(1).standard_t(3, (3, 3, 7, 20)).astype(np.float32)
    scale = CODES[weights](kernel)
    codes = module.ROUNDINGS[rounding.__name__](kernel, scale, Recipe("", weights=weights), correlated(7))  # type: ignore[attr-defined]
    assert codes.dtype == np.int8 and codes.shape == kernel.shape
    assert np.abs(codes.astype(int)).max() <= limit
    assert np.abs(codes * scale - kernel).max() < 20 * scale.max()


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_no_pair_of_products_overflows_16_bits(rounding: str) -> None:
    kernel = np.random.default_rng(1).standard_t(3, (3, 3, 8, 50)).astype(np.float32)
    inputs = correlated(8)

    def worst(weights: str) -> int:
        codes = module.ROUNDINGS[rounding](
            kernel, CODES[weights](kernel), Recipe("", weights=weights), inputs
        )
        sums = codes[:, :, 0::2].astype(int) + codes[:, :, 1::2]
        return int(np.abs(sums).max())

    assert 255 * worst("paired") <= 32767 and worst("paired") <= PAIR
    assert 255 * worst("8 bits") > 32767  # the trap is real


def test_gptq_changes_the_layers_answer_less_than_nearest() -> None:
    kernel = np.random.default_rng(2).normal(0, 1, (3, 3, 16, 8)).astype(np.float32)
    inputs, recipe = correlated(16), Recipe("", weights="7 bits")
    scale = CODES["7 bits"](kernel) * 8  # coarse, so that rounding is what counts
    patches = module._patches(inputs, (3, 3))
    patches -= patches.mean(0)

    def error(codes: NDArray[np.int8]) -> float:
        off = (codes * scale - kernel).reshape(-1, kernel.shape[3])
        return float(np.square(patches @ off).mean())

    assert error(gptq(kernel, scale, recipe, inputs)) < 0.5 * error(nearest(kernel, scale, recipe, inputs))


def test_values_are_codes_times_scale(quantized: Quantized, model: keras.Model) -> None:
    first, *others = quantized.values()
    assert first.codes is None  # float_first
    assert others
    for conv in others:
        assert conv.codes is not None
        np.testing.assert_array_equal(conv.kernel, conv.codes * conv.scale)
    for before, after in zip(quantized.values(), others, strict=False):
        assert before.output == after.input


def test_equalizing_alone_changes_nothing(model: keras.Model, pictures: NDArray[np.uint8]) -> None:
    kernels = module._equalized(conv_chain(model), pictures.astype(np.float32), 0.5)
    exact = module._weights(conv_chain(model))
    changed = {name: kernels[name][0] for name in kernels}
    assert any(not np.allclose(changed[name], exact[name][0]) for name in kernels)
    x = y = pictures.astype(np.float32) - 120
    for layer in conv_chain(model):
        if layer.name in kernels:
            x = np.maximum(module._convolve(layer, x, *exact[layer.name]), 0)
            y = np.maximum(module._convolve(layer, y, *kernels[layer.name]), 0)
        else:
            x, y = module._run(layer, x), module._run(layer, y)
    np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-3)


def test_bias_correction_keeps_each_channels_mean(model: keras.Model, pictures: NDArray[np.uint8]) -> None:
    import keras

    layers = conv_chain(model)
    last = [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)][-1]
    x = keras.Model(model.inputs[0], last.input)(pictures)

    def off(recipe: Recipe) -> float:
        """How far the last convolution's channel means are from the exact ones, before the ReLU."""
        plan = quantize(model, pictures, recipe)
        coded = np.asarray(keras.Model(model.inputs[0], layers[0].input)(pictures))
        for layer in layers[: layers.index(last)]:
            if layer.name in plan:
                conv = plan[layer.name]
                coded = np.maximum(module._convolve(layer, coded, conv.kernel, conv.bias), 0)
                coded = module._coded(coded, conv.output)
            else:
                coded = module._run(layer, coded)
        found = module._convolve(last, coded, plan[last.name].kernel, plan[last.name].bias)
        exact = module._convolve(last, np.asarray(x), np.asarray(last.kernel), np.asarray(last.bias))
        return float(np.abs((found - exact).mean((0, 1, 2))).max())

    plain = Recipe("", weights="7 bits")
    assert off(replace(plain, bias_correction=True)) < 0.01 * off(plain)


def planned(model: keras.Model, plan: Quantized, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the plan says that an integer engine gives, [n, C]."""
    import keras

    layers = conv_chain(model)
    x = np.asarray(keras.Model(model.inputs[0], layers[0].input)(pictures))
    for layer in layers:
        if layer.name not in plan:
            x = module._run(layer, x)
            continue
        conv = plan[layer.name]
        x = x if conv.codes is None else module._coded(x, conv.input)
        x = module._coded(np.maximum(module._convolve(layer, x, conv.kernel, conv.bias), 0), conv.output)
    return np.asarray(keras.Model(layers[-1].output, model.outputs[0])(x))


@pytest.mark.parametrize("float_first", [True, False])
@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_an_engine_computes_what_was_planned(
    format: str, float_first: bool, model: keras.Model, pictures: NDArray[np.uint8]
) -> None:
    from export.int8.search import INT8

    plan = quantize(
        model, pictures, Recipe("", rounding="gptq", bias_correction=True, float_first=float_first)
    )
    data = INT8[format](model, plan)
    run = ENGINES["litert" if format == "tflite" else "onnx"](data, 1)
    said = np.concatenate([run(picture[np.newaxis])["probabilities"] for picture in pictures])
    np.testing.assert_allclose(said, planned(model, plan, pictures), atol=0.03)
    assert len(data) < (20_000 if format == "tflite" else 25_000)


def test_the_tflite_file_holds_the_very_codes(model: keras.Model, quantized: Quantized) -> None:
    from export.tflite import int8

    file = schema.ModelT.InitFromPackedBuf(int8(model, quantized))
    (graph,) = file.subgraphs
    for conv in quantized.values():
        if conv.codes is not None:
            want = conv.codes.transpose(3, 0, 1, 2)
            held = [
                tensor
                for tensor in graph.tensors
                if list(tensor.shape) == list(want.shape) and tensor.type == schema.TensorType.INT8
            ]
            (tensor,) = held
            data = np.asarray(file.buffers[tensor.buffer].data).view(np.int8)
            np.testing.assert_array_equal(data.reshape(want.shape), want)
            np.testing.assert_array_equal(tensor.quantization.scale, conv.scale)


def test_a_chain_with_strides_is_refused() -> None:
    import keras

    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    x = keras.layers.Normalization(mean=(1, 1, 1), variance=(1, 1, 1))(image)
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="strided")(x)
    with pytest.raises(QuantizeError, match="strided"):
        conv_chain(keras.Model(image, x))
    with pytest.raises(QuantizeError, match="no convolution"):
        conv_chain(keras.Model(image, keras.layers.Flatten()(image)))


def test_a_large_dense_layer_is_stored_in_8_bits(
    pictures: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The article's head: without this its int8 file would hold 25 MB of floats."""
    import keras

    from export.int8.search import INT8
    from export.serving_model import predict

    monkeypatch.setattr(module, "LARGE", 10_000)
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3), dtype="uint8", name="image")
    x = keras.layers.Normalization(mean=(120, 120, 120), variance=(1, 1, 1), name="imagenet_mean")(image)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="block1_conv1")(x)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="block1_conv2")(x)
    x = keras.layers.Flatten(name="flatten")(keras.layers.MaxPooling2D(name="block1_pool")(x))
    x = keras.layers.Dense(
        16, activation="relu", name="hidden", kernel_initializer=keras.initializers.RandomNormal(0, 1e-4)
    )(x)
    x = keras.layers.Softmax(name="probabilities")(keras.layers.Dense(3, name="logits")(x))
    model = keras.Model(image, x)
    plan = quantize(model, pictures, BEST)
    wanted = predict(model, pictures, lambda done: None)["probabilities"]
    assert 4 * 8 * 16 * 16 * 16 > 120_000  # what the Dense layer's weights take in float
    for format, engine in (("tflite", "litert"), ("onnx", "onnx")):
        data = INT8[format](model, plan)
        assert len(data) < 60_000
        run = ENGINES[engine](data, 1)
        said = np.concatenate([run(picture[np.newaxis])["probabilities"] for picture in pictures])
        assert np.abs(said - wanted).max() < 0.05
