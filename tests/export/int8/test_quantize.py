from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from export.formats import INT8_CONVERTERS
from export.int8 import layers
from export.int8.equalization import equalize
from export.int8.gptq import gptq
from export.int8.layers import QuantizeError, conv_chain, conv_weights, convolve, run_layer
from export.int8.quantize import (
    Quantized,
    QuantizedConv,
    QuantParams,
    Recipe,
    quantize,
    round_to_codes,
    with_weights,
)
from export.int8.weight_codes import WeightCodes
from export.serving_model import predict
from runtime.inference.engines import ENGINES

if TYPE_CHECKING:
    import keras

BEST = Recipe("gptq-equalized", rounding=gptq, bias_correction=True, equalization=0.5)


@pytest.fixture(scope="module")
def quantized(model: keras.Model, pictures: NDArray[np.uint8]) -> Quantized:
    return quantize(model, pictures, BEST)


def test_values_are_codes_times_scale(quantized: Quantized, model: keras.Model) -> None:
    first, *others = quantized.values()
    assert first.codes is None  # float_first
    assert others
    for conv in others:
        assert conv.codes is not None
        np.testing.assert_array_equal(conv.kernel, conv.codes * conv.scale)
    for before, after in zip(quantized.values(), others, strict=False):
        assert before.output == after.input


def test_equalized_weights_compute_the_same_network(model: keras.Model, pictures: NDArray[np.uint8]) -> None:
    walk = equalize(conv_chain(model), pictures.astype(np.float32), 0.5)
    kernels = {layer.name: conv for layer, conv in walk if conv}
    exact = conv_weights(conv_chain(model))
    changed = {name: kernels[name].kernel for name in kernels}
    assert any(not np.allclose(changed[name], exact[name][0]) for name in kernels)
    x = y = pictures.astype(np.float32) - 120
    for layer in conv_chain(model):
        if layer.name in kernels:
            x = np.maximum(convolve(layer, x, *exact[layer.name]), 0)
            y = np.maximum(convolve(layer, y, kernels[layer.name].kernel, kernels[layer.name].bias), 0)
        else:
            x, y = run_layer(layer, x), run_layer(layer, y)
    np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-3)


def test_bias_correction_keeps_each_channels_mean(model: keras.Model, pictures: NDArray[np.uint8]) -> None:
    import keras

    chain = conv_chain(model)
    last = [layer for layer in chain if isinstance(layer, keras.layers.Conv2D)][-1]
    x = keras.Model(model.inputs[0], last.input)(pictures)

    def error(recipe: Recipe) -> float:
        """The largest error of a channel mean of the last convolution, before the ReLU."""
        quantized = quantize(model, pictures, recipe)
        coded = np.asarray(keras.Model(model.inputs[0], chain[0].input)(pictures))
        for layer in chain[: chain.index(last)]:
            if layer.name in quantized:
                conv = quantized[layer.name]
                coded = np.maximum(convolve(layer, coded, conv.kernel, conv.bias), 0)
                coded = round_to_codes(coded, conv.output)
            else:
                coded = run_layer(layer, coded)
        found = convolve(last, coded, quantized[last.name].kernel, quantized[last.name].bias)
        exact = convolve(last, np.asarray(x), np.asarray(last.kernel), np.asarray(last.bias))
        return float(np.abs((found - exact).mean((0, 1, 2))).max())

    plain = Recipe("", weight_codes=WeightCodes(63))
    assert error(replace(plain, bias_correction=True)) < 0.01 * error(plain)


def expected_outputs(
    model: keras.Model, quantized: Quantized, pictures: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """The outputs [n, C] that an integer engine should compute from these codes and scales."""
    import keras

    chain = conv_chain(model)
    x = np.asarray(keras.Model(model.inputs[0], chain[0].input)(pictures))
    for layer in chain:
        if layer.name not in quantized:
            x = run_layer(layer, x)
            continue
        conv = quantized[layer.name]
        x = x if conv.codes is None else round_to_codes(x.copy(), conv.input)
        x = round_to_codes(np.maximum(convolve(layer, x, conv.kernel, conv.bias), 0), conv.output)
    return np.asarray(keras.Model(chain[-1].output, model.outputs[0])(x))


@pytest.mark.parametrize("float_first", [True, False])
@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_an_engine_computes_the_quantized_network(
    format: str, float_first: bool, model: keras.Model, pictures: NDArray[np.uint8]
) -> None:
    recipe = Recipe("", rounding=gptq, bias_correction=True, float_first=float_first)
    quantized = quantize(model, pictures, recipe)
    data = INT8_CONVERTERS[format](model, quantized)
    run = ENGINES["litert" if format == "tflite" else "onnx"].load(data, 1)
    outputs = np.concatenate([run(picture[np.newaxis])["probabilities"] for picture in pictures])
    np.testing.assert_allclose(outputs, expected_outputs(model, quantized, pictures), atol=0.03)
    assert len(data) < (20_000 if format == "tflite" else 25_000)


def test_the_tflite_file_has_exactly_the_chosen_codes(model: keras.Model, quantized: Quantized) -> None:
    file = schema.ModelT.InitFromPackedBuf(INT8_CONVERTERS["tflite"](model, quantized))
    (graph,) = file.subgraphs
    for conv in quantized.values():
        if conv.codes is not None:
            expected = conv.codes.transpose(3, 0, 1, 2)
            found = [
                tensor
                for tensor in graph.tensors
                if list(tensor.shape) == list(expected.shape) and tensor.type == schema.TensorType.INT8
            ]
            (tensor,) = found
            data = np.asarray(file.buffers[tensor.buffer].data).view(np.int8)
            np.testing.assert_array_equal(data.reshape(expected.shape), expected)
            np.testing.assert_array_equal(tensor.quantization.scale, conv.scale)


def test_a_layer_that_is_never_active_is_quantized(model: keras.Model, pictures: NDArray[np.uint8]) -> None:
    """Such as after training with too high a learning rate."""
    import keras

    dead = keras.models.clone_model(model)
    dead.set_weights(model.get_weights())
    last = [layer for layer in conv_chain(dead) if isinstance(layer, keras.layers.Conv2D)][-1]
    last.set_weights([last.get_weights()[0], np.full(last.filters, -1e9, np.float32)])
    for conv in quantize(dead, pictures, replace(BEST, equalize_last=True)).values():
        assert np.isfinite(conv.kernel).all() and np.isfinite(conv.bias).all() and (conv.factors > 0).all()


def test_a_convolution_with_strides_raises_quantize_error() -> None:
    import keras

    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    x = keras.layers.Normalization(mean=(1, 1, 1), variance=(1, 1, 1))(image)
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="strided")(x)
    with pytest.raises(QuantizeError, match="strided"):
        conv_chain(keras.Model(image, x))
    with pytest.raises(QuantizeError, match="no convolution"):
        conv_chain(keras.Model(image, keras.layers.Flatten()(image)))


def test_a_large_dense_layer_has_int8_weights(
    pictures: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head of the article has 25 MB of float32 weights."""
    import keras

    monkeypatch.setattr(layers, "LARGE", 10_000)
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
    quantized = quantize(model, pictures, BEST)
    last = list(quantize(model, pictures, replace(BEST, equalize_last=True)).values())[-1]
    assert (last.factors == 1).all()  # a Dense layer does not give factors back
    expected = predict(model, pictures, lambda done: None)["probabilities"]
    assert 4 * 8 * 16 * 16 * 16 > 120_000  # bytes of the Dense layer's weights in float32
    for format, engine in (("tflite", "litert"), ("onnx", "onnx")):
        data = INT8_CONVERTERS[format](model, quantized)
        assert len(data) < 60_000
        run = ENGINES[engine].load(data, 1)
        outputs = np.concatenate([run(picture[np.newaxis])["probabilities"] for picture in pictures])
        assert np.abs(outputs - expected).max() < 0.05


def test_features_keep_the_factors_that_equalization_takes_from_channels() -> None:
    import keras

    from train.network.heads import HEADS, build_classifier
    from train.network.vgg import CONVOLUTIONS, random_weights
    from train.settings import Settings

    weights = random_weights(dict.fromkeys(CONVOLUTIONS, 8), (32, 32))
    head = HEADS["pooled"](3, Settings())
    keras.Sequential([keras.Input((1, 1, 8)), *head])
    model = build_classifier(weights, head)
    photos = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    layers = conv_chain(model)
    inputs = run_layer(keras.Model(model.inputs[0], layers[0].input), photos)
    equalized = {layer.name: conv for layer, conv in equalize(layers, inputs, 1.0) if conv}
    assert all(conv.factors.min() < 0.9 for conv in list(equalized.values())[:-1])
    unused, one = QuantParams(1.0), np.ones(8, np.float32)
    exact = {
        name: QuantizedConv(None, one, conv.kernel, conv.bias, unused, unused, conv.factors)
        for name, conv in equalized.items()
    }
    expected = predict(model, photos, lambda done: None)
    for name, output in predict(with_weights(model, exact), photos, lambda done: None).items():
        np.testing.assert_allclose(output, expected[name], rtol=1e-3, atol=1e-4)
    without = {name: replace(conv, factors=one) for name, conv in exact.items()}
    features = predict(with_weights(model, without), photos, lambda done: None)["features"]
    assert np.abs(features - expected["features"]).max() > 0.05
    for recipe, equalized_last in ((BEST, False), (replace(BEST, equalize_last=True), True)):
        assert (list(quantize(model, photos, recipe).values())[-1].factors.min() < 0.9) == equalized_last
