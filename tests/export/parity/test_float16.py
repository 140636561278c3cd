"""The gate on float16 arithmetic passes the graph of today and fails the head that squared pooled values."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from export import onnx_converter
from export.parity import float16
from export.parity.float16 import Float16Result, float16_failures, run_float16
from export.parity.runner import ParityReference
from export.serving_model import predict
from tests.backbone import SIDE, small_backbone
from train.data.synthetic import FLOWERS, draw_flower
from train.network.heads import HEADS, build_classifier
from train.network.vgg import Weights, base_layers, load_weights, picture_input
from train.settings import Settings

SCALE = 1000.0  # times the activations of the small network, which are about 1: those of VGG16 reach 10,000
RESULT = Float16Result(30, 1000.0, "x", 0, 0, 0.0, 0.0)


@pytest.fixture(scope="module")
def weights() -> Weights:
    small = small_backbone()
    tensors = {
        name: values if name.endswith("kernel") else SCALE * values for name, values in small.tensors.items()
    }
    tensors["block1_conv1/kernel"] = SCALE * tensors["block1_conv1/kernel"]
    return replace(small, tensors=tensors)


@pytest.fixture(scope="module")
def head(weights: Weights) -> list[keras.layers.Layer]:
    keras.utils.set_random_seed(0)
    layers = HEADS["pooled"](len(FLOWERS), Settings())
    keras.Sequential([keras.Input(weights.output_shape("block5_pool")), *layers])  # creates the weights
    return layers


@pytest.fixture(scope="module")
def drawings() -> NDArray[np.uint8]:
    pictures = [draw_flower(name, number).resize((SIDE, SIDE)) for name in FLOWERS for number in range(2)]
    return np.stack([np.asarray(picture, np.uint8) for picture in pictures])


def reference_of(model: keras.Model, pictures: NDArray[np.uint8]) -> ParityReference:
    outputs = predict(model, pictures, lambda done: None)
    probabilities = outputs["probabilities"]
    return ParityReference(pictures, probabilities.argmax(1), probabilities, features=outputs.get("features"))


def test_the_graph_computes_the_same_in_float16(
    weights: Weights, head: list[keras.layers.Layer], drawings: NDArray[np.uint8]
) -> None:
    model = build_classifier(weights, head)
    done: list[int] = []
    reference = reference_of(model, drawings)
    result = run_float16(onnx_converter.float32(model), reference, done.append)
    assert float16_failures(result) == []
    assert result.n == len(done) == len(drawings)
    assert 256 < result.largest < 65_504, "these activations cannot be squared in float16"
    assert result.max_dp > 0, "something is rounded"
    other = replace(reference, probabilities=1 - reference.probabilities)
    lines = float16_failures(run_float16(onnx_converter.float32(model), other))
    assert any("have another top-1" in line for line in lines)


def test_few_photos_are_of_all_classes(
    weights: Weights,
    head: list[keras.layers.Layer],
    drawings: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answers are right for the first photo of each class and wrong for the second."""
    monkeypatch.setattr(float16, "PHOTOS", len(FLOWERS))
    model = build_classifier(weights, head)
    reference = reference_of(model, drawings)
    answers = reference.probabilities.copy()
    answers[1::2] = 1 - answers[1::2]
    by_class = replace(reference, truth=np.arange(len(drawings)) // 2, probabilities=answers)
    result = run_float16(onnx_converter.float32(model), by_class)
    assert result.n == len(FLOWERS) and float16_failures(result) == []


def test_a_head_that_squares_pooled_values_overflows(
    weights: Weights, head: list[keras.layers.Layer], drawings: NDArray[np.uint8]
) -> None:
    """The head of version 1: the sum of the squares was up to 80 times the largest number of float16."""
    image = picture_input(weights.input_size)
    x = base_layers(image, widths=weights.widths)
    for layer in head:
        x = layer(x)
    model = keras.Model(image, x, name="version_1")
    load_weights(model, weights)
    result = run_float16(onnx_converter.float32(model), reference_of(model, drawings))
    assert result.largest > 65_504
    assert any("float16 ends at 65,504" in line for line in float16_failures(result))


@pytest.mark.parametrize(
    ("passes", "fails", "fact"),
    [
        ({"largest": 65_504.0}, {"largest": 65_536.0}, "x reaches 65,536"),
        ({}, {"largest": float("inf")}, "x reaches inf"),
        ({"disagreements": 1}, {"disagreements": 2}, "2 of 30 photos have another top-1"),
        ({"known_disagreements": 1}, {"known_disagreements": 2}, "unknown decision"),
        ({"max_dp": 0.05}, {"max_dp": 0.051}, "max |Δp|"),
        ({"max_dfeatures": 0.02}, {"max_dfeatures": 0.021}, "features"),
        ({}, {"max_dfeatures": float("nan")}, "features"),
    ],
)
def test_each_bound_passes_at_its_figure_and_fails_beyond_it(
    passes: dict[str, float], fails: dict[str, float], fact: str
) -> None:
    assert float16_failures(replace(RESULT, **passes)) == []
    (line,) = float16_failures(replace(RESULT, **fails))
    assert fact in line
