"""Convert a Keras model to ONNX: one function per precision.

Every file has the input and the outputs of the contract, in its order: `image` uint8 [N, H, W, 3] →
`probabilities` float32 [N, C], `known` float32 [N, 1] where the model has it, `features` float32 [N, D].
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnx.version_converter
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.int8.layers import conv_chain, large_dense
from export.int8.quantize import Quantized, QuantizedConv, QuantParams, with_weights
from export.serving_model import save_serving_model

OPSET = 19  # the first whose DequantizeLinear has a reference implementation
TF2ONNX_OPSET = 17  # of a later one, tf2onnx leaves a Transpose on each side of every ReduceMean
IR_VERSION = 9  # belongs to opset 19; ONNX Runtime reads it since 1.16
PRODUCER = "vgg-edge"


def float32(model: keras.Model) -> bytes:
    """Weights and arithmetic in float32, for any batch size."""
    return bytes(_graph(model).SerializeToString())


def float16(model: keras.Model) -> bytes:
    """Weights stored in float16, half the size, and cast to float32 in the graph.

    ONNX Runtime folds the casts when it loads the file, so inference is as fast as with the float32 file.
    Arithmetic in float16 is slower: without float16 kernels, every layer gets a cast on both sides.
    """
    proto = _graph(model)
    casts = []
    for tensor in proto.graph.initializer:
        # Only kernels: other tensors are small, and float16 cannot represent the epsilon among them.
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
    """Convolutions and pooling in int8, with the codes and scales of `quantized`; the head in float32.

    The graph is in QDQ form: a QuantizeLinear and a DequantizeLinear around each tensor. ONNX Runtime
    replaces them with integer kernels, and other readers can compute them as they are. A Dense layer with
    over 1,000,000 weights gets int8 weights.
    """
    proto = _graph(with_weights(model, quantized))
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    writer = _QdqWriter(graph)
    layers = iter(conv_chain(model))
    dense = {layer.kernel.shape: layer.name for layer in large_dense(model)}
    params = next(iter(quantized.values())).input
    for node in graph.node:
        if node.op_type in ("Conv", "MaxPool"):
            layer = next(layers)
            conv = quantized.get(layer.name)
            if conv is None:  # pooling keeps the scale of its input
                writer.to_quantize[node.input[0]] = writer.to_quantize[node.output[0]] = params
            else:
                params = conv.output
                writer.quantize_conv(node, layer.name, conv)
        elif node.op_type == "Relu" and writer.follows_conv(node):
            writer.to_quantize[node.output[0]] = params
        elif node.op_type == "MatMul" and node.input[1] in weights:
            kernel = numpy_helper.to_array(weights[node.input[1]])
            if kernel.shape in dense:
                writer.quantize_dense(node, dense[kernel.shape], kernel)
        writer.append(node)
    del graph.node[:]
    graph.node.extend(writer.nodes)
    used = {name for node in writer.nodes for name in node.input}
    for name in weights.keys() - used:
        graph.initializer.remove(weights[name])
    return bytes(_checked(proto).SerializeToString())


class _QdqWriter:
    """Collects a graph's nodes and adds QuantizeLinear and DequantizeLinear nodes."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.to_quantize: dict[str, QuantParams] = {}  # tensors to quantize where a node reads them next
        self.quantized: dict[str, str] = {}  # tensor → its dequantized form, which later nodes read

    def append(self, node: onnx.NodeProto) -> None:
        for i, name in enumerate(node.input):
            if name in self.to_quantize:
                self.quantized[name] = self._quantize_activation(name, self.to_quantize.pop(name))
            node.input[i] = self.quantized.get(name, name)
        self.nodes.append(node)

    def follows_conv(self, node: onnx.NodeProto) -> bool:
        return node.input[0] == self.nodes[-1].output[0] and self.nodes[-1].op_type == "Conv"

    def quantize_conv(self, node: onnx.NodeProto, name: str, conv: QuantizedConv) -> None:
        if conv.codes is None:
            return
        self.to_quantize[node.input[0]] = conv.input
        step = (conv.scale * np.float32(conv.input.scale)).astype(np.float32)
        kernel, bias = conv.codes.transpose(3, 2, 0, 1), np.round(conv.bias / step).astype(np.int32)
        node.input[1:] = [  # tf2onnx omits a bias of zeros
            self._dequantize(f"{name}_kernel", kernel, conv.scale, 0),
            self._dequantize(f"{name}_bias", bias, step, 0),
        ]

    def quantize_dense(self, node: onnx.NodeProto, name: str, kernel: NDArray[np.float32]) -> None:
        scale = (np.maximum(np.abs(kernel).max(0), 1e-9) / 127).astype(np.float32)
        node.input[1] = self._dequantize(name, np.round(kernel / scale).astype(np.int8), scale, 1)

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _dequantize(self, name: str, codes: NDArray[Any], scale: NDArray[np.float32], axis: int) -> str:
        zero = self._constant(f"{name}_zero_point", np.zeros(scale.shape, codes.dtype))
        inputs = [self._constant(f"{name}_codes", codes), self._constant(f"{name}_scale", scale), zero]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_real"], axis=axis))
        return f"{name}_real"

    def _quantize_activation(self, name: str, params: QuantParams) -> str:
        scale = self._constant(f"{name}_scale", np.array(params.scale, np.float32))
        zero = self._constant(f"{name}_zero_point", np.array(params.zero_point, np.uint8))
        codes, real = f"{name}_codes", f"{name}_real"
        self.nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [codes]))
        self.nodes.append(helper.make_node("DequantizeLinear", [codes, scale, zero], [real]))
        return real


def _graph(model: keras.Model) -> onnx.ModelProto:
    """The float32 graph, with the input and output names of the contract."""
    import tf2onnx  # slow to import

    # Through a SavedModel: tf2onnx's from_function leaves a Keras 3 model's constants as dangling inputs.
    with tempfile.TemporaryDirectory() as folder, _errors_only("tensorflow", "tf2onnx"):
        save_serving_model(model, Path(folder), batch=None)
        frozen, inputs, outputs, names = tf2onnx.tf_loader.from_saved_model(
            folder, None, None, return_tensors_to_rename=True
        )
        proto, _ = tf2onnx.convert.from_graph_def(
            frozen, model.name, inputs, outputs, opset=TF2ONNX_OPSET, tensors_to_rename=names
        )
    _drop_multiplications_by_one(proto.graph)
    _shorten_names(proto.graph)
    outputs = {value.name: value for value in proto.graph.output}  # sorted by name in a SavedModel
    in_order = [outputs[name] for name in model.output_names]
    del proto.graph.output[:]
    proto.graph.output.extend(in_order)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del proto.graph.value_info[:]  # intermediate shapes, in which N has other names
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", TF2ONNX_OPSET))
    proto = onnx.version_converter.convert_version(proto, OPSET)
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = PRODUCER, version(PRODUCER)
    return _checked(proto)


def _drop_multiplications_by_one(graph: onnx.GraphProto) -> None:
    """Removes the division by the standard deviation of the Normalization layer, which is 1."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    replacement: dict[str, str] = {}  # output of a removed node → its input
    for node in list(graph.node):
        for i, name in enumerate(node.input):
            node.input[i] = replacement.get(name, name)
        if node.op_type == "Mul" and node.input[1] in constants:
            factor = numpy_helper.to_array(constants[node.input[1]])
            if factor.dtype == np.float32 and (factor == 1).all():
                replacement[node.output[0]] = node.input[0]
                graph.initializer.remove(constants.pop(node.input[1]))
                graph.node.remove(node)


def _shorten_names(graph: onnx.GraphProto) -> None:
    """Renames StatefulPartitionedCall/vgg16_1/block1_conv1_1/Relu:0 to block1_conv1_1/Relu:0, and so on."""

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
def _errors_only(*loggers: str) -> Iterator[None]:
    """Silences warnings: those of tf2onnx are about TensorFlow 1."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
