"""Model files with damaged weights, on which a gate has to fail."""

from __future__ import annotations

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import numpy_helper

from export.flatbuffer import pack, unpack
from export.targets.tflm import without_zip

LAYER = "block3_conv2"


def damaged_tflite(data: bytes) -> bytes:
    """The file with the kernel of its sixth convolution turned around, and with its zip archive."""
    model = unpack(data)
    (graph,) = model.subgraphs
    kind = schema.BuiltinOperator.CONV_2D
    convolutions = [op for op in graph.operators if model.operatorCodes[op.opcodeIndex].builtinCode == kind]
    kernel = model.buffers[graph.tensors[convolutions[5].inputs[1]].buffer]
    kernel.data = np.ascontiguousarray(np.asarray(kernel.data)[::-1])
    return pack(model) + data[len(without_zip(data)) :]


def damaged_onnx(data: bytes) -> bytes:
    """The file with the kernel of LAYER turned around."""
    model = onnx.load_model_from_string(data)
    (kernel,) = (
        tensor for tensor in model.graph.initializer if LAYER in tensor.name and len(tensor.dims) == 4
    )
    values = numpy_helper.to_array(kernel)
    turned = np.ascontiguousarray(values.ravel()[::-1].reshape(values.shape))
    kernel.CopyFrom(numpy_helper.from_array(turned, kernel.name))
    return bytes(model.SerializeToString())
