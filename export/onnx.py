"""A Keras model → ONNX bytes, one function a precision, all with the contract's input and outputs."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.int8.quantize import Quantized, QuantParams, conv_chain, large_dense, with_weights
from export.serving_model import save_serving_model

OPSET = 17
IR_VERSION = 8  # the one of opset 17's time, read by ONNX Runtime since 1.12


def float32(model: keras.Model) -> bytes:
    """Weights and arithmetic in float32; the batch size is left open."""
    return bytes(_graph(model).SerializeToString())


def float16(model: keras.Model) -> bytes:
    """Weights stored in float16, half the size, and cast to float32 in the graph.

    ONNX Runtime folds the casts when it loads the file, so that it runs as fast as float32. Arithmetic in
    float16 would not: on a CPU without such kernels every layer gets a cast on both sides.
    """
    proto = _graph(model)
    casts = []
    for tensor in proto.graph.initializer:
        # Kernels alone: the rest is small, and holds an epsilon that 16 bits cannot, and the ImageNet mean.
        if tensor.data_type == TensorProto.FLOAT and tensor.dims and max(tensor.dims) < prod(tensor.dims):
            stored = numpy_helper.from_array(
                numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}_float16"
            )
            casts.append(helper.make_node("Cast", [stored.name], [tensor.name], to=TensorProto.FLOAT))
            tensor.CopyFrom(stored)
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return bytes(_checked(proto).SerializeToString())


def int8(model: keras.Model, quantized: Quantized) -> bytes:
    """Convolutions and poolings in int8, by the codes and scales of `quantized`; the head in float.

    Written as QDQ: a QuantizeLinear and DequantizeLinear around each, which ONNX Runtime turns into integer
    kernels, and any other reader can follow. A Dense layer too large to stay in float gets int8 weights.
    """
    proto = _graph(with_weights(model, quantized))
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: NDArray[Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def dequantized(name: str, codes: NDArray[Any], scale: NDArray[np.float32], axis: int) -> str:
        zero = constant(f"{name}_zero_point", np.zeros(scale.shape, codes.dtype))
        inputs = [constant(f"{name}_codes", codes), constant(f"{name}_scale", scale), zero]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_real"], axis=axis))
        return f"{name}_real"

    def recoded(name: str, codes: QuantParams) -> str:
        scale = constant(f"{name}_scale", np.array(codes.scale, np.float32))
        zero = constant(f"{name}_zero_point", np.array(codes.zero_point, np.uint8))
        nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_codes"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_codes", scale, zero], [f"{name}_real"]))
        return f"{name}_real"

    layers = iter(conv_chain(model))
    dense = {layer.kernel.shape: layer for layer in large_dense(model)}
    coded: dict[str, QuantParams] = {}  # activations that are to be coded before they are used
    last = next(iter(quantized.values())).input
    for node in graph.node:
        if node.op_type in ("Conv", "MaxPool"):
            layer = next(layers)
            conv = quantized.get(layer.name)
            if conv is not None and conv.codes is not None:
                coded[node.input[0]] = conv.input
                step = (conv.scale * np.float32(conv.input.scale)).astype(np.float32)
                kernel, bias = conv.codes.transpose(3, 2, 0, 1), np.round(conv.bias / step).astype(np.int32)
                node.input[1:] = [  # tf2onnx leaves a bias of zeros out
                    dequantized(f"{layer.name}_kernel", kernel, conv.scale, 0),
                    dequantized(f"{layer.name}_bias", bias, step, 0),
                ]
            last = last if conv is None else conv.output
            if conv is None:
                coded[node.input[0]] = coded[node.output[0]] = last
        elif node.op_type == "Relu" and node.input[0] == nodes[-1].output[0] and nodes[-1].op_type == "Conv":
            coded[node.output[0]] = last
        elif node.op_type == "MatMul" and node.input[1] in weights:
            kernel = numpy_helper.to_array(weights[node.input[1]])
            if kernel.shape in dense:
                scale = (np.maximum(np.abs(kernel).max(0), 1e-9) / 127).astype(np.float32)
                codes = np.round(kernel / scale).astype(np.int8)
                node.input[1] = dequantized(dense[kernel.shape].name, codes, scale, 1)
        for i, name in enumerate(node.input):
            if name in coded:
                node.input[i] = recoded(name, coded.pop(name))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for name in weights.keys() - used:
        graph.initializer.remove(weights[name])
    return bytes(_checked(proto).SerializeToString())


def _graph(model: keras.Model) -> onnx.ModelProto:
    """The float32 graph, its input and outputs named as the contract has them."""
    # Here and not above: slow to import. Its notes are about TensorFlow 1.
    import tf2onnx

    # By way of a SavedModel: from_function leaves a Keras 3 model's constants as dangling inputs.
    with tempfile.TemporaryDirectory() as folder, _quiet("tensorflow", "tf2onnx"):
        save_serving_model(model, Path(folder), batch=None)
        frozen, inputs, outputs, names = tf2onnx.tf_loader.from_saved_model(
            folder, None, None, return_tensors_to_rename=True
        )
        proto, _ = tf2onnx.convert.from_graph_def(
            frozen, model.name, inputs, outputs, opset=OPSET, tensors_to_rename=names
        )
    _drop_multiplications_by_one(proto.graph)
    _shorten_names(proto.graph)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del proto.graph.value_info[:]  # shapes along the way, with a made-up name for each N
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", OPSET))
    proto.ir_version = IR_VERSION
    return _checked(proto)


def _drop_multiplications_by_one(graph: onnx.GraphProto) -> None:
    """Normalization divides by a deviation, which is 1 here, and tf2onnx keeps that."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    instead: dict[str, str] = {}  # an output that goes → what was multiplied
    for node in list(graph.node):
        for i, name in enumerate(node.input):
            node.input[i] = instead.get(name, name)
        if node.op_type == "Mul" and node.input[1] in constants:
            factor = numpy_helper.to_array(constants[node.input[1]])
            if factor.dtype == np.float32 and (factor == 1).all():
                instead[node.output[0]] = node.input[0]
                graph.initializer.remove(constants.pop(node.input[1]))
                graph.node.remove(node)


def _shorten_names(graph: onnx.GraphProto) -> None:
    """StatefulPartitionedCall/vgg16_1/block1_conv1_1/Relu:0 → block1_conv1_1/Relu:0, in every place."""

    def short(name: str) -> str:
        return re.sub(r"^(\w+/)?StatefulPartitionedCall/([^/]+/(?=.*/))?", "", name)

    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    for node in graph.node:
        node.name = short(node.name)
        for names in (node.input, node.output):
            names[:] = [short(name) for name in names]


def _checked(proto: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(proto, full_check=True)
    return proto


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
