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


def main() -> None:
    MODELS.mkdir(exist_ok=True)
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


if __name__ == "__main__":
    main()
