"""The full-int8 file answers as the trained model, and computes in int8 up to the last pooling layer."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from export.flatbuffer import unpack
from export.formats import FULL_INT8_CONVERTERS
from export.int8.layers import QuantizeError, conv_chain, convolve, run_layer
from export.int8.quantize import Recipe, quantize, round_to_codes
from export.int8.search import FULL_INT8_RECIPE
from export.int8.weight_codes import WeightCodes
from export.parity.gates import broken_bounds
from export.parity.result import FileKey, ParityResult
from export.parity.runner import ParityReference, run_parity
from export.serving_model import predict
from runtime.inference.engines import ENGINES, engine_name
from tests.backbone import SIDE, small_backbone
from tests.export.conftest import small_model
from train.data.synthetic import FLOWERS, draw_flower
from train.network.heads import HEADS, build_classifier
from train.network.novelty import THRESHOLD, fit_novelty
from train.network.vgg import Weights
from train.settings import Settings

KEY = FileKey("tflite", "full_int8")
PER_CLASS = 4
INT8, FLOAT32 = schema.TensorType.INT8, schema.TensorType.FLOAT32


@pytest.fixture(scope="module")
def drawings() -> NDArray[np.uint8]:
    pictures = [
        draw_flower(name, number).resize((SIDE, SIDE)) for name in FLOWERS for number in range(PER_CLASS)
    ]
    return np.stack([np.asarray(picture, np.uint8) for picture in pictures])


def make_model(recipe: str, weights: Weights, drawings: NDArray[np.uint8]) -> keras.Model:
    """A network with all outputs, whose head names each drawing by the mean features of its class."""
    keras.utils.set_random_seed(0)
    layers = HEADS[recipe](len(FLOWERS), Settings())
    keras.Sequential([keras.Input(weights.output_shape("block5_pool")), *layers])  # creates the weights
    truth = np.repeat(np.arange(len(FLOWERS)), PER_CLASS)
    last = weights.output_shape("block5_pool")[2]
    features = predict(build_classifier(weights, layers), drawings, lambda done: None)["features"]
    model = build_classifier(weights, layers, fit_novelty(features, truth, features, last_width=last))
    logits = model.get_layer("logits")
    inputs = np.asarray(keras.Model(model.inputs[0], logits.input)(drawings))
    means = np.stack([inputs[truth == index].mean(0) for index in range(len(FLOWERS))])
    kernel = (means - means.mean(0)).T
    kernel *= 5 / np.abs(inputs @ kernel).max()
    logits.set_weights([kernel, -(means @ kernel).max(0) / 2])
    return model


@pytest.fixture(scope="module")
def model(drawings: NDArray[np.uint8]) -> keras.Model:
    return make_model("pooled", small_backbone(), drawings)


@pytest.fixture(scope="module")
def data(model: keras.Model, drawings: NDArray[np.uint8]) -> bytes:
    return convert(model, drawings, FULL_INT8_RECIPE)


def convert(model: keras.Model, drawings: NDArray[np.uint8], recipe: Recipe) -> bytes:
    return FULL_INT8_CONVERTERS["tflite"](model, quantize(model, drawings, recipe), drawings)


def compare(model: keras.Model, data: bytes, drawings: NDArray[np.uint8]) -> list[ParityResult]:
    outputs = predict(model, drawings, lambda done: None)
    probabilities = outputs["probabilities"]
    reference = ParityReference(
        drawings,
        probabilities.argmax(1),
        probabilities,
        outputs["known"],
        THRESHOLD,
        outputs["features"],
    )
    assert len(set(reference.truth)) > 2  # with one label, agreement proves nothing
    return run_parity({KEY: data}, reference)


def test_the_file_answers_as_the_model_in_each_engine(
    model: keras.Model, data: bytes, drawings: NDArray[np.uint8]
) -> None:
    results = compare(model, data, drawings)
    assert {engine_name(result.engine) for result in results} >= {"litert"}
    for result in results:
        assert broken_bounds(result) == []
        assert result.max_dfeatures is not None and 0 < result.max_dfeatures < 0.2


def test_the_head_of_the_article_computes_the_quantized_network(drawings: NDArray[np.uint8]) -> None:
    model = make_model("article", small_backbone(), drawings)
    quantized = quantize(model, drawings, FULL_INT8_RECIPE)
    chain = conv_chain(model)
    x = np.asarray(keras.Model(model.inputs[0], chain[0].input)(drawings))
    for layer in chain:
        if conv := quantized.get(layer.name):
            x = round_to_codes(x.copy(), conv.input)
            x = round_to_codes(np.maximum(convolve(layer, x, conv.kernel, conv.bias), 0), conv.output)
        else:
            x = run_layer(layer, x)
    probabilities, _, features = keras.Model(chain[-1].output, model.outputs)(x)
    run = ENGINES["litert"].load(FULL_INT8_CONVERTERS["tflite"](model, quantized, drawings), 1)
    outputs = [run(drawing[np.newaxis]) for drawing in drawings]
    found = {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}
    features = np.asarray(features)
    assert np.abs(found["features"] - features).max() < 0.05 * features.max()
    assert np.abs(found["probabilities"] - probabilities).max() < 0.05


def test_codes_of_three_bits_fail_the_gate(
    model: keras.Model, data: bytes, drawings: NDArray[np.uint8]
) -> None:
    coarse = replace(FULL_INT8_RECIPE, weight_codes=WeightCodes(max_code=3), bias_correction=False)
    for result in compare(model, convert(model, drawings, coarse), drawings):
        assert broken_bounds(result)


def test_it_computes_in_int8_from_the_image_to_the_last_pooling_layer(data: bytes) -> None:
    file = unpack(data)
    (graph,) = file.subgraphs
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    kinds = [names[file.operatorCodes[operator.opcodeIndex].builtinCode] for operator in graph.operators]
    outputs = [graph.tensors[operator.outputs[0]] for operator in graph.operators]
    head = next(place for place, output in enumerate(outputs) if output.type == FLOAT32)
    assert kinds[:3] == ["QUANTIZE", "SUB", "CONV_2D"]
    assert "MAX_POOL_2D" not in kinds[head:] and "CONV_2D" not in kinds[head:]
    for kind, operator in zip(kinds, graph.operators, strict=True):
        if kind == "CONV_2D":
            x, weights = (graph.tensors[index] for index in operator.inputs[:2])
            assert (x.type, weights.type) == (INT8, INT8)
            assert len(weights.quantization.scale) == weights.shape[0], "one scale per channel"
    pools = [output for kind, output in zip(kinds, outputs, strict=True) if kind == "MAX_POOL_2D"]
    large = [list(output.shape) for output in outputs[head:] if output.shape[-1] < np.prod(output.shape)]
    assert large == [list(pool.shape) for pool in pools[-2:]], "the only float32 that are not vectors"


def test_a_mean_directly_follows_its_pooling_layer(data: bytes) -> None:
    """Otherwise, TFLite Micro keeps the outputs of all pooling layers in memory."""
    (graph,) = unpack(data).subgraphs
    for previous, operator in zip(graph.operators, graph.operators[1:], strict=False):
        shapes = [list(graph.tensors[item.outputs[0]].shape) for item in (previous, operator)]
        if shapes[1][:3] == [1, 1, 1] and list(graph.tensors[operator.inputs[0]].shape)[1] > 1:
            assert operator.inputs[0] == previous.outputs[0]


def test_it_has_the_contracts_signature(model: keras.Model, data: bytes) -> None:
    run = ENGINES["litert"].load(data, 1)
    assert run.input == ("uint8", (1, SIDE, SIDE, 3))
    features = model.get_layer("features").output.shape[1]
    expected = {"probabilities": (1, len(FLOWERS)), "known": (1, 1), "features": (1, features)}
    assert run.outputs == expected
    (graph,) = unpack(data).subgraphs
    assert [graph.tensors[index].name.decode() for index in graph.outputs] == list(expected)
    assert set(run.dtypes.values()) == {"float32"}


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_picture_of_one_colour_has_finite_outputs(level: int, data: bytes) -> None:
    """A layer may activate nothing, and has no length then."""
    outputs = ENGINES["litert"].load(data, 1)(np.full((1, SIDE, SIDE, 3), level, np.uint8))
    assert all(np.isfinite(values).all() for values in outputs.values())
    assert outputs["probabilities"].sum() == pytest.approx(1, abs=1e-5)


def test_another_head_is_refused(pictures: NDArray[np.uint8]) -> None:
    other = small_model()
    with pytest.raises(QuantizeError, match="without --full-int8"):
        FULL_INT8_CONVERTERS["tflite"](other, quantize(other, pictures, FULL_INT8_RECIPE), pictures)
