"""Unpack a .tflite file into objects that can be changed, and pack them again."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers.builder import Builder
from numpy.typing import NDArray

_LAST_DEPRECATED_CODE = 127  # schema.fbs: PLACEHOLDER_FOR_GREATER_OP_CODES, all that fits the older field


def unpack(data: bytes) -> schema.ModelT:
    """The file's tables, with all weights inside. (litert-quantizer stores weights after the tables.)"""
    model = schema.ModelT.InitFromPackedBuf(data)
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0 and 1 mean that there are no weights after the tables
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def pack(model: schema.ModelT) -> bytes:
    """The bytes of a .tflite file. Equal tables give equal bytes."""
    for code in model.operatorCodes:
        # Readers of before 2020 know only this field, and newer ones take the larger of both.
        code.deprecatedBuiltinCode = min(code.builtinCode, _LAST_DEPRECATED_CODE)
    weights = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    builder = _AlignedBuilder(weights + 2**16)  # initial size; the builder doubles it when it is full
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _AlignedBuilder(Builder):  # type: ignore[misc]
    """Aligns weights to 16 bytes, as the schema's force_align requires and flatc's Python code does not."""

    def CreateNumpyVector(self, x: NDArray[np.generic]) -> int:
        self.StartVector(x.itemsize, x.size, 16)
        payload = x.tobytes()
        self.head -= len(payload)
        self.Bytes[self.head : self.head + len(payload)] = payload
        return int(self.EndVector())
