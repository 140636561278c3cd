"""The float kinds of file, and the function that makes each: a new one is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable

import keras

from export import onnx as to_onnx
from export import tflite as to_tflite

# By format and precision: the model, image → probabilities, to the file's bytes. The int8 files also take
# photos to calibrate on, and more than one try: export/ladder.py makes them.
FLOAT_FORMATS: dict[tuple[str, str], Callable[[keras.Model], bytes]] = {
    ("tflite", "float32"): to_tflite.float32,
    ("tflite", "float16"): to_tflite.float16,
    ("tflite", "dynamic"): to_tflite.dynamic,
    ("onnx", "float32"): to_onnx.float32,
    ("onnx", "float16"): to_onnx.float16,
}
