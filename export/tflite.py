"""A Keras model → TFLite bytes, one function a precision, all with the contract's input and outputs."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from export.flatbuffer import pack, unpack
from export.int8.activation_ranges import LEVELS
from export.int8.quantize import Quantized, QuantizedConv, QuantParams, conv_chain, large_dense, with_weights
from export.serving_model import save_serving_model
from runtime.common.terminal import suppress_native_stderr


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


def int8(model: keras.Model, quantized: Quantized) -> bytes:
    """Convolutions and poolings in int8, by the codes and scales of `quantized`; the head in float.

    A Dense layer too large to stay in float (the article's first) gets int8 weights and a dynamic range.
    """
    # Here and not above: slow to import.
    from litert_quantizer.qtyping import QuantGranularity, TFLOperationName
    from litert_quantizer.quantizer import Quantizer

    data = float32(with_weights(model, quantized))
    quantizer = Quantizer(data)
    ranges = {}
    reach = (0.0, 0.0)
    for layer, (source, result) in zip(conv_chain(model), _tensors_of_chain(data), strict=True):
        scope, conv = re.escape(result), quantized.get(layer.name)
        if conv is None:
            quantizer.add_static_config(scope, TFLOperationName.MAX_POOL_2D, 8, 8)
        else:
            if conv.codes is not None:
                quantizer.add_static_config(scope, TFLOperationName.CONV_2D, 8, 8)
            ranges[source] = _range(conv.input)
            reach = _range(conv.output)
        ranges[result] = reach
    for layer in large_dense(model):
        scope = rf"/{layer.name}_\d+/"
        quantizer.add_dynamic_config(scope, TFLOperationName.FULLY_CONNECTED, 8, QuantGranularity.TENSORWISE)
    with suppress_native_stderr():  # the quantizer opens an interpreter, which says so
        made = quantizer.quantize(
            {name: {"min": np.array(low), "max": np.array(high)} for name, (low, high) in ranges.items()},
            enable_progress_report=False,
        )
    return _with_codes(bytes(made.quantized_model), list(quantized.values()))


def _converter(model: keras.Model, folder: str) -> tf.lite.TFLiteConverter:
    save_serving_model(model, Path(folder), batch=1)
    return tf.lite.TFLiteConverter.from_saved_model(folder)


def _convert(converter: tf.lite.TFLiteConverter) -> bytes:
    data: bytes = converter.convert()
    return data


def _range(codes: QuantParams) -> tuple[float, float]:
    return -codes.zero_point * codes.scale, (LEVELS - codes.zero_point) * codes.scale


def _tensors_of_chain(data: bytes) -> list[tuple[str, str]]:
    """The names of what each convolution and pooling takes and gives, in order."""
    file = unpack(data)
    (graph,) = file.subgraphs
    kinds = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.MAX_POOL_2D)
    return [
        (graph.tensors[operator.inputs[0]].name.decode(), graph.tensors[operator.outputs[0]].name.decode())
        for operator in graph.operators
        if file.operatorCodes[operator.opcodeIndex].builtinCode in kinds
    ]


def _with_codes(data: bytes, convolutions: list[QuantizedConv]) -> bytes:
    """The quantizer rounds weights to the nearest code of a scale of its own: these are the codes chosen."""
    file = unpack(data)
    (graph,) = file.subgraphs
    kind = schema.BuiltinOperator.CONV_2D
    operators = [op for op in graph.operators if file.operatorCodes[op.opcodeIndex].builtinCode == kind]
    for conv, operator in zip(convolutions, operators, strict=True):
        if conv.codes is None:
            continue
        kernel, bias = (graph.tensors[index] for index in operator.inputs[1:])
        step = conv.scale * np.float32(conv.input.scale)
        for tensor, codes, scale in (
            (kernel, conv.codes.transpose(3, 0, 1, 2), conv.scale),
            (bias, np.round(conv.bias / step).astype(np.int32), step),
        ):
            file.buffers[tensor.buffer].data = np.frombuffer(codes.tobytes(), np.uint8)
            tensor.quantization.scale = scale
            tensor.quantization.zeroPoint = np.zeros(len(scale), np.int64)
    return pack(file)
