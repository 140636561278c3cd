"""Writes tests/runtime/models: tiny networks that name a picture by its mean colour, in several formats.

    python -m tests.runtime.make_models

The tests of the runtime read these files, so that they need no TensorFlow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIDE = 32
MODELS = Path(__file__).parent / "models"
FORMATS = (("tflite", "float32"), ("tflite", "dynamic"), ("onnx", "float32"))
FORMATS_WITH_KNOWN = (("tflite", "float32"), ("onnx", "float32"))
FEATURES = 12  # of the network with the output `features`: the mean colours of the four quarters
KNOWN_WEIGHT, KNOWN_BIAS = 1.0, -6.0  # its `known`: sigmoid(bias + weight x the sum of the features)


def main() -> None:
    MODELS.mkdir(exist_ok=True)
    for format, precision in FORMATS_WITH_KNOWN:
        path = MODELS / f"features_{precision}.{format}"
        path.write_bytes(convert_with_features(format, precision))
    for known, formats in ((False, FORMATS), (True, FORMATS_WITH_KNOWN)):
        for format, precision in formats:
            model_path(known, format, precision).write_bytes(convert(known, format, precision))


def model_path(known: bool, format: str, precision: str) -> Path:
    return MODELS / f"{'known' if known else 'plain'}_{precision}.{format}"


def convert(known: bool, format: str, precision: str) -> bytes:
    """Returns the network without a contract. `known` adds that output: is the picture bright?"""
    import keras

    from export.formats import FLOAT_CONVERTERS

    image = keras.Input((SIDE, SIDE, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255)(image)
    convolution = keras.layers.Conv2D(3, 1, use_bias=False, name="block1_conv1")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(convolution(x))
    convolution.set_weights([np.eye(3, dtype=np.float32).reshape(1, 1, 3, 3)])
    logits = keras.layers.Dense(3, name="logits")
    outputs = [keras.layers.Softmax(name="probabilities")(logits(x))]
    logits.set_weights([10 * np.eye(3, dtype=np.float32)[::-1], np.zeros(3, np.float32)])
    if known:
        bright = keras.layers.Dense(1, activation="sigmoid", name="known")
        outputs.append(bright(x))
        bright.set_weights([np.full((3, 1), 10, np.float32), np.array([-5], np.float32)])
    return FLOAT_CONVERTERS[format, precision](keras.Model(image, outputs, name="colours"))


def convert_with_features(format: str, precision: str) -> bytes:
    """Returns a network with all outputs of contract version 2. A class is named by its strongest channel."""
    import keras

    from export.formats import FLOAT_CONVERTERS

    image = keras.Input((SIDE, SIDE, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255)(image)
    convolution = keras.layers.Conv2D(3, 1, use_bias=False, name="block1_conv1")
    x = keras.layers.AveragePooling2D(SIDE // 2, name="quarters")(convolution(x))
    convolution.set_weights([np.eye(3, dtype=np.float32).reshape(1, 1, 3, 3)])
    features = keras.layers.Flatten(name="features")(x)
    logits = keras.layers.Dense(3, name="logits")
    known = keras.layers.Dense(1, activation="sigmoid", name="known")
    outputs = [keras.layers.Softmax(name="probabilities")(logits(features)), known(features), features]
    logits.set_weights([np.tile(2.5 * np.eye(3, dtype=np.float32)[::-1], (4, 1)), np.zeros(3, np.float32)])
    known.set_weights([np.full((FEATURES, 1), KNOWN_WEIGHT, np.float32), np.array([KNOWN_BIAS], np.float32)])
    return FLOAT_CONVERTERS[format, precision](keras.Model(image, outputs, name="quarters"))


if __name__ == "__main__":
    main()
