"""A dynamic file opens in the oldest engine, whatever its Dense layers are."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from export import tflite_converter
from export.flatbuffer import unpack
from export.metadata import embed_contract
from export.parity.result import FileKey
from export.parity.runner import ParityReference, run_parity
from export.serving_model import predict
from runtime.model_file.contract import Contract
from tests.export.conftest import LABELS, SIDE

WIDTH = 1024  # the converter quantizes a Dense layer from 1,024 weights on


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A network whose Dense layer `known` has one output."""
    image = keras.Input((SIDE, SIDE, 3), dtype="uint8", name="image")
    pixels = keras.layers.AveragePooling2D(8)(keras.layers.Rescaling(1 / 255)(image))
    wide = _dense(WIDTH, 1, activation="relu")(keras.layers.Flatten()(pixels))
    features = keras.layers.Identity(name="features")(wide)
    known = _dense(1, 2, activation="sigmoid", name="known")(features)
    logits = _dense(len(LABELS), 3, name="logits")(features)
    probabilities = keras.layers.Softmax(name="probabilities")(logits)
    return keras.Model(image, [probabilities, known, features])


def test_a_dense_layer_with_one_output_keeps_a_dynamic_file_readable(
    model: keras.Model, pictures: NDArray[np.uint8], contract: Contract
) -> None:
    """The converter takes such a layer for a per-channel one, and tflite-runtime 2.14 refuses those."""
    data = tflite_converter.dynamic(model)
    assert _scales_of_dense_layers(data) == [1, 1, 1]
    probabilities = predict(model, pictures, lambda done: None)["probabilities"]
    reference = ParityReference(pictures, probabilities.argmax(axis=1), probabilities)
    results = run_parity({FileKey("tflite", "dynamic"): embed_contract(data, "tflite", contract)}, reference)
    assert results
    for result in results:
        assert not result.error
        assert result.max_dp <= 0.1, result


def _dense(units: int, seed: int, **options: str) -> keras.layers.Dense:
    initializer = keras.initializers.VarianceScaling(1.0, seed=seed)
    return keras.layers.Dense(units, kernel_initializer=initializer, **options)


def _scales_of_dense_layers(data: bytes) -> list[int]:
    file = unpack(data)
    (graph,) = file.subgraphs
    return [
        len(graph.tensors[operator.inputs[1]].quantization.scale)
        for operator in graph.operators
        if file.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.FULLY_CONNECTED
    ]
