"""A .tflite file that is unpacked and packed again has the same outputs, wherever its weights are stored."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools.flatbuffer_utils import update_packed_buffer
from numpy.typing import NDArray

from export.flatbuffer import pack, unpack
from export.parity.result import FileKey
from runtime.inference.engines import ENGINES


@pytest.fixture
def float32(float_files: dict[FileKey, bytes]) -> bytes:
    return float_files["tflite", "float32"]


def with_weights_after_tables(data: bytes) -> bytes:
    """The same file with its largest weights after the FlatBuffer, as litert-quantizer writes them."""
    model = unpack(data)
    largest = max(
        range(len(model.buffers)),
        key=lambda i: 0 if model.buffers[i].data is None else model.buffers[i].data.size,
    )
    weights = model.buffers[largest].data.tobytes()
    model.buffers[largest] = schema.BufferT(offset=1, size=1)  # reserves room for the two numbers
    packed = bytearray(pack(model))
    packed += b"\0" * (-len(packed) % 16)
    update_packed_buffer(schema.Model.GetRootAs(packed).Buffers(largest), len(packed), len(weights))
    return bytes(packed + weights)


def test_unpacking_moves_weights_from_after_the_tables_inside(
    float32: bytes, pictures: NDArray[np.uint8]
) -> None:
    moved = with_weights_after_tables(float32)
    assert any(buffer.offset > 1 for buffer in schema.ModelT.InitFromPackedBuf(moved).buffers)
    whole = pack(unpack(moved))
    assert not any(buffer.offset for buffer in schema.ModelT.InitFromPackedBuf(whole).buffers)
    outputs = [
        ENGINES["litert"].load(data, 1)(pictures[:1])["probabilities"] for data in (float32, moved, whole)
    ]
    assert np.array_equal(outputs[0], outputs[1])
    assert np.array_equal(outputs[0], outputs[2])


def test_packing_repeats_byte_for_byte(float32: bytes) -> None:
    once = pack(unpack(float32))
    assert pack(unpack(once)) == once
