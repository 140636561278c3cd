"""Count the MACs (multiply-accumulate operations) of one inference from a model file's graph.

Convolutions and dense layers count; other layers are about a thousandth of the total. Padding counts like
pixels, as usual.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx
from ai_edge_litert import schema_py_generated as schema

from export.flatbuffer import unpack


def count_macs(data: bytes, format: str) -> int:
    """MACs of one photo through a model file of `format`, "tflite" or "onnx"."""
    return _COUNTERS[format](data)


def _tflite(data: bytes) -> int:
    kinds = schema.BuiltinOperator
    file = unpack(data)
    (graph,) = file.subgraphs
    total = 0
    for operator in graph.operators:
        kind = file.operatorCodes[operator.opcodeIndex].builtinCode
        if kind not in (kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D, kinds.FULLY_CONNECTED):
            continue
        weights = [int(size) for size in graph.tensors[operator.inputs[1]].shape]
        result = [int(size) for size in graph.tensors[operator.outputs[0]].shape]
        # Kernels are [out, height, width, in], depthwise ones [1, height, width, out], dense ones [out, in].
        per_output = math.prod(weights[1:3]) if kind == kinds.DEPTHWISE_CONV_2D else math.prod(weights[1:])
        total += math.prod(result[1:]) * per_output
    return total


def _onnx(data: bytes) -> int:
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(data), data_prop=True).graph
    shapes: dict[str, list[int]] = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        # The batch size is open: count one photo.
        shapes[value.name] = [size.dim_value or 1 for size in value.type.tensor_type.shape.dim]
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            total += math.prod(shapes[node.output[0]][1:]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type in ("MatMul", "Gemm"):
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            inner = shapes[node.input[1]][-1 if transposed else -2]
            total += math.prod(shapes[node.output[0]][1:]) * inner
    return total


_COUNTERS: dict[str, Callable[[bytes], int]] = {"tflite": _tflite, "onnx": _onnx}
