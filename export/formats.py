"""The converter functions by format and precision. A new float format is one function and one line here."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from numpy.typing import NDArray

from export import full_int8_converter, onnx_converter, tflite_converter
from export.int8.quantize import Quantized
from export.parity.result import FileKey

# By format and precision: the Keras model → the file's bytes.
FLOAT_CONVERTERS: dict[FileKey, Callable[[keras.Model], bytes]] = {
    FileKey("tflite", "float32"): tflite_converter.float32,
    FileKey("tflite", "float16"): tflite_converter.float16,
    FileKey("tflite", "dynamic"): tflite_converter.dynamic,
    FileKey("onnx", "float32"): onnx_converter.float32,
    FileKey("onnx", "float16"): onnx_converter.float16,
}

# By format: the Keras model and its quantized convolutions → the file's bytes.
INT8_CONVERTERS: dict[str, Callable[[keras.Model, Quantized], bytes]] = {
    "tflite": tflite_converter.int8,
    "onnx": onnx_converter.int8,
}

# By format: the Keras model, its quantized convolutions and the calibration photos → the file's bytes.
FULL_INT8_CONVERTERS: dict[str, Callable[[keras.Model, Quantized, NDArray[np.uint8]], bytes]] = {
    "tflite": full_int8_converter.full_int8,
}
