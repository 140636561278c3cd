from __future__ import annotations

import keras
import numpy as np
import pytest

from export import onnx_converter, tflite_converter
from export.int8.quantize import Recipe, quantize
from export.macs import count_macs

# Computed by hand for `two_layers`: a 3x3 convolution from 3 to 8 channels at 16 x 16 positions, then 8 x 4.
CONVOLUTION = 16 * 16 * 3 * 3 * 3 * 8
DENSE = 8 * 4


@pytest.fixture(scope="module")
def two_layers() -> keras.Model:
    image = keras.Input((16, 16, 3), dtype="uint8", name="image")
    x = keras.layers.Normalization(mean=(120.0,) * 3, variance=(1.0,) * 3, name="imagenet_mean")(image)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="block1_conv1")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(4, name="logits")(x)
    return keras.Model(image, keras.layers.Softmax(name="probabilities")(x), name="two")


@pytest.mark.parametrize(
    ("format", "convert"), [("tflite", tflite_converter.float32), ("onnx", onnx_converter.float32)]
)
def test_a_float_file_has_the_macs_computed_by_hand(format: str, convert, two_layers) -> None:  # type: ignore[no-untyped-def]
    assert count_macs(convert(two_layers), format) == CONVOLUTION + DENSE


@pytest.mark.parametrize(
    ("format", "convert"), [("tflite", tflite_converter.int8), ("onnx", onnx_converter.int8)]
)
def test_an_int8_file_has_as_many_macs(format: str, convert, two_layers) -> None:  # type: ignore[no-untyped-def]
    photos = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    quantized = quantize(two_layers, photos, Recipe("nearest", float_first=False))
    assert count_macs(convert(two_layers, quantized), format) == CONVOLUTION + DENSE
