"""Convert a Keras model to TFLite: one function per precision.

Every file has the input and the outputs of the contract, in its order: `image` uint8 [1, H, W, 3] →
`probabilities` float32 [1, C], `known` float32 [1, 1] where the model has it, `features` float32 [1, D].
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from export.flatbuffer import pack, unpack
from export.int8.layers import conv_chain, large_dense
from export.int8.quantize import LEVELS, Quantized, QuantizedConv, QuantParams, with_weights
from export.serving_model import save_serving_model
from runtime.common.terminal import suppress_native_stderr

DENSE_PER_TENSOR_VERSION = 9  # of FULLY_CONNECTED with int8 weights, one scale and a dynamic range


def float32(model: keras.Model) -> bytes:
    """Weights and arithmetic in float32."""
    return _finish(_float32(model), model)


def float16(model: keras.Model) -> bytes:
    """Weights stored in float16, half the size. The engine expands them to float32 when it loads the file."""
    with tempfile.TemporaryDirectory() as folder:
        converter = _converter(model, folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
        return _finish(converter.convert(), model)


def dynamic(model: keras.Model) -> bytes:
    """Dynamic range: weights in int8, and a layer's inputs quantized by their own range at each inference."""
    with tempfile.TemporaryDirectory() as folder:
        converter = _converter(model, folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        return _finish(_with_per_tensor_dense(converter.convert()), model)


def int8(model: keras.Model, quantized: Quantized) -> bytes:
    """Convolutions and pooling in int8, with the codes and scales of `quantized`; the head in float32.

    A Dense layer with over 1,000,000 weights gets int8 weights and a dynamic range.
    """
    # Slow to import.
    from litert_quantizer.qtyping import QuantGranularity, TFLOperationName
    from litert_quantizer.quantizer import Quantizer

    data = _float32(with_weights(model, quantized))
    quantizer = Quantizer(data)
    ranges = {}
    output_range = (0.0, 0.0)
    for layer, (source, result) in zip(conv_chain(model), _chain_tensors(data), strict=True):
        scope, conv = re.escape(result), quantized.get(layer.name)
        if conv is None:
            quantizer.add_static_config(scope, TFLOperationName.MAX_POOL_2D, 8, 8)
        else:
            if conv.codes is not None:
                quantizer.add_static_config(scope, TFLOperationName.CONV_2D, 8, 8)
            ranges[source] = _range(conv.input)
            output_range = _range(conv.output)
        ranges[result] = output_range
    for layer in large_dense(model):
        scope = rf"/{layer.name}_\d+/"
        quantizer.add_dynamic_config(scope, TFLOperationName.FULLY_CONNECTED, 8, QuantGranularity.TENSORWISE)
    with suppress_native_stderr():  # the quantizer opens an interpreter, which logs to stderr
        quantization = quantizer.quantize(
            {name: {"min": np.array(low), "max": np.array(high)} for name, (low, high) in ranges.items()},
            enable_progress_report=False,
        )
    return _finish(_with_codes(bytes(quantization.quantized_model), list(quantized.values())), model)


def _float32(model: keras.Model) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return bytes(_converter(model, folder).convert())


def _converter(model: keras.Model, folder: str) -> tf.lite.TFLiteConverter:
    save_serving_model(model, Path(folder), batch=1)
    return tf.lite.TFLiteConverter.from_saved_model(folder)


def _finish(data: bytes, model: keras.Model) -> bytes:
    """Puts the outputs in the order of the model, and replaces the CAST of the image by DEQUANTIZE.

    The converter sorts outputs by name. TFLite Micro has no CAST from uint8; DEQUANTIZE with scale 1 and zero
    point 0 gives the same values.
    """
    file = unpack(data)
    (graph,) = file.subgraphs
    (signature,) = file.signatureDefs
    indices = {entry.name.decode(): entry.tensorIndex for entry in signature.outputs}
    graph.outputs = [indices[name] for name in model.output_names]
    signature.outputs.sort(key=lambda entry: model.output_names.index(entry.name.decode()))
    for operator in graph.operators:
        source = graph.tensors[operator.inputs[0]] if len(operator.inputs) else None
        kind = file.operatorCodes[operator.opcodeIndex].builtinCode
        if source and kind == schema.BuiltinOperator.CAST and source.type == schema.TensorType.UINT8:
            file.operatorCodes.append(
                schema.OperatorCodeT(builtinCode=schema.BuiltinOperator.DEQUANTIZE, version=1)
            )
            operator.opcodeIndex = len(file.operatorCodes) - 1
            operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
            operator.builtinOptions = schema.DequantizeOptionsT()
    for tensor in graph.tensors:
        if tensor.type == schema.TensorType.UINT8:  # the image, before and after its reshape
            tensor.quantization = schema.QuantizationParametersT(
                scale=np.array([1], np.float32), zeroPoint=np.array([0], np.int64)
            )
    return pack(_without_unused_codes(file))


def _without_unused_codes(file: schema.ModelT) -> schema.ModelT:
    """Drops operator codes that no operator has, and repetitions."""
    (graph,) = file.subgraphs
    codes = list[schema.OperatorCodeT]()
    for operator in graph.operators:
        code = file.operatorCodes[operator.opcodeIndex]
        kinds = [(kept.builtinCode, kept.version) for kept in codes]
        if (code.builtinCode, code.version) not in kinds:
            codes.append(code)
            kinds.append((code.builtinCode, code.version))
        operator.opcodeIndex = kinds.index((code.builtinCode, code.version))
    file.operatorCodes = codes
    return file


def _with_per_tensor_dense(data: bytes) -> bytes:
    """Corrects the version of FULLY_CONNECTED, which tflite-runtime 2.14 can run up to 9.

    Version 12 means a scale for each output. The converter also gives it to a file without such scales, as
    soon as one Dense layer has a single output: its one scale is as many as its outputs.
    """
    file = unpack(data)
    for code in file.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.FULLY_CONNECTED:
            code.version = min(code.version, DENSE_PER_TENSOR_VERSION)
    return pack(file)


def _range(params: QuantParams) -> tuple[float, float]:
    return -params.zero_point * params.scale, (LEVELS - params.zero_point) * params.scale


def _chain_tensors(data: bytes) -> list[tuple[str, str]]:
    """The names of the input and output tensor of each convolution and pooling, in order."""
    file = unpack(data)
    (graph,) = file.subgraphs
    kinds = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.MAX_POOL_2D)
    return [
        (graph.tensors[operator.inputs[0]].name.decode(), graph.tensors[operator.outputs[0]].name.decode())
        for operator in graph.operators
        if file.operatorCodes[operator.opcodeIndex].builtinCode in kinds
    ]


def _with_codes(data: bytes, convolutions: list[QuantizedConv]) -> bytes:
    """Replaces the codes and scales that litert-quantizer chose with those of `convolutions`."""
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
