"""An exported ONNX file as the compiler of a neural processor wants it.

Such a compiler takes a float32 image [1, 3, H, W] and the mean as a setting, and subtracts it in front of
the network; the board then takes uint8 pixels. It cannot quantize an input that is uint8 in the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT = "image"
FEATURES = "features"  # all other outputs are computed from it


@dataclass(frozen=True)
class NpuNetwork:
    """The network without its preprocessing."""

    data: bytes  # an ONNX file for a batch of one
    mean: list[float]  # of each of the channels R, G, B
    outputs: list[str]
    head: list[list[str]]  # first and last tensor of each path through the head, which needs over 8 bits


def npu_network(data: bytes) -> NpuNetwork:
    """The network of a float file of an export, whose preprocessing ends at the first convolution."""
    proto = onnx.load_model_from_string(data)
    graph = proto.graph
    (image,) = graph.input
    height, width = (side.dim_value for side in image.type.tensor_type.shape.dim[1:3])
    first = next(node for node in graph.node if node.op_type == "Conv")
    before = _ancestors(graph, first.input[0])
    mean = _mean(graph, before)
    names = {output for node in before for output in node.output}
    kept = [node for node in graph.node if node.output[0] not in names]
    first.input[0] = INPUT
    used = {name for node in kept for name in node.input}
    model = helper.make_model(
        helper.make_graph(
            kept,
            graph.name,
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, 3, height, width])],
            [_for_one_picture(output) for output in graph.output],
            [tensor for tensor in graph.initializer if tensor.name in used],
        ),
        opset_imports=proto.opset_import,
        ir_version=proto.ir_version,
    )
    onnx.checker.check_model(model)
    outputs = [output.name for output in graph.output]
    ends = [output for output in outputs if output != FEATURES]
    head = [[pool, end] for pool in _pools_of_the_head(kept) for end in ends]
    return NpuNetwork(model.SerializeToString(), mean, outputs, head)


def _ancestors(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    """The nodes that compute the tensor `name`, the last first."""
    producers = {output: node for node in graph.node for output in node.output}
    found, names = list[onnx.NodeProto](), [name]
    while names:
        if (node := producers.get(names.pop())) is not None:
            found.append(node)
            names.extend(node.input)
    return found


def _mean(graph: onnx.GraphProto, preprocessing: list[onnx.NodeProto]) -> list[float]:
    """The mean of each channel, which the preprocessing subtracts from rows of pixels."""
    (subtraction,) = (node for node in preprocessing if node.op_type == "Sub")
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == subtraction.input[1])
    (mean,) = np.unique(numpy_helper.to_array(tensor).reshape(-1, 3), axis=0)
    return [float(value) for value in mean]


def _for_one_picture(output: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    width = output.type.tensor_type.shape.dim[1].dim_value
    return helper.make_tensor_value_info(output.name, TensorProto.FLOAT, [1, width])


def _pools_of_the_head(nodes: list[onnx.NodeProto]) -> list[str]:
    """The results of pooling layers that another operator than a convolution reads."""
    pools = {node.output[0] for node in nodes if node.op_type == "MaxPool"}
    read = {name for node in nodes if node.op_type != "Conv" for name in node.input}
    return sorted(pools & read)
