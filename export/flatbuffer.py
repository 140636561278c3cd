"""A .tflite as an object that can be changed, and back, with its weights where kernels may rely on them."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers.builder import Builder
from numpy.typing import NDArray


def unpack(data: bytes) -> schema.ModelT:
    """The file's tables with all weights inside; litert-quantizer puts them behind the tables."""
    model = schema.ModelT.InitFromPackedBuf(data)
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0 and 1 stand for none
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def pack(model: schema.ModelT) -> bytes:
    """The same tables give the same bytes."""
    weights = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    builder = _AlignedBuilder(weights + 2**16)  # grows by doubling from there
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _AlignedBuilder(Builder):  # type: ignore[misc]
    """Starts weights on multiples of 16 bytes, as the schema's force_align asks.

    The Python code that flatc generates leaves that out.
    """

    def CreateNumpyVector(self, x: NDArray[np.generic]) -> int:
        self.StartVector(x.itemsize, x.size, 16)
        payload = x.tobytes()
        self.head -= len(payload)
        self.Bytes[self.head : self.head + len(payload)] = payload
        return int(self.EndVector())
