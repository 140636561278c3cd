"""A Keras model → TFLite bytes, one function a precision, all with the contract's input and outputs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import keras
import tensorflow as tf

from export.graph import save


def float32(model: keras.Model) -> bytes:
    """Weights and arithmetic in float32."""
    with tempfile.TemporaryDirectory() as folder:
        return _convert(_converter(model, folder))


def float16(model: keras.Model) -> bytes:
    """Weights stored in float16, half the size. A CPU expands them to float32 when it loads the file."""
    with tempfile.TemporaryDirectory() as folder:
        converter = _converter(model, folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
        return _convert(converter)


def dynamic(model: keras.Model) -> bytes:
    """Weights in int8; a layer's input is quantized by its own range when the layer runs: no calibration."""
    with tempfile.TemporaryDirectory() as folder:
        converter = _converter(model, folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        # A per-channel Dense would be FULLY_CONNECTED version 12, which tflite-runtime 2.14 does not know.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        return _convert(converter)


def _converter(model: keras.Model, folder: str) -> tf.lite.TFLiteConverter:
    save(model, Path(folder), batch=1)
    return tf.lite.TFLiteConverter.from_saved_model(folder)


def _convert(converter: tf.lite.TFLiteConverter) -> bytes:
    data: bytes = converter.convert()
    return data
