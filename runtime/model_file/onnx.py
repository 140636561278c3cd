"""The contract's text inside an .onnx file.

The protobuf wire format is read here directly (https://protobuf.dev/programming-guides/encoding/): the
package onnx is large, and a hostile file could make it allocate without limit.
"""

from collections.abc import Iterator

from runtime.common.errors import ModelError
from runtime.model_file.files import CONTRACT_NAME, MAX_JSON_BYTES

# Field numbers of onnx.proto: ModelProto.metadata_props, and key and value of a StringStringEntryProto.
METADATA_PROPS, KEY, VALUE = 14, 1, 2
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5  # wire types
MAX_VARINT_BYTES = 10
MAX_FIELDS = 1000  # of the outermost message; an export writes six

_DAMAGED = "is truncated, or not an ONNX file: copy it again, or export it"


def read_contract_text(data: bytes) -> bytes:
    """Returns the value under contract.json in ModelProto.metadata_props. Raises ModelError."""
    for number, value in _fields(memoryview(data), MAX_FIELDS):
        if number == METADATA_PROPS and isinstance(value, memoryview):
            entry = dict(_fields(value, 2))
            key, text = entry.get(KEY), entry.get(VALUE)
            if not isinstance(key, memoryview) or not isinstance(text, memoryview):
                continue
            if key == CONTRACT_NAME.encode():
                if len(text) > MAX_JSON_BYTES:
                    raise ModelError(f"its {CONTRACT_NAME} is over {MAX_JSON_BYTES:,} bytes")
                return bytes(text)
    raise ModelError(f"holds no {CONTRACT_NAME}: it was not made by `python -m export`")


def _fields(data: memoryview, limit: int) -> Iterator[tuple[int, int | memoryview]]:
    """Yields the number and value of each field of one protobuf message, without entering nested messages.

    Raises ModelError when it is no such message, or has more than `limit` fields.
    """
    at = 0
    while at < len(data):
        if not limit:
            raise ModelError("has more fields than an ONNX file of `python -m export`: export it again")
        limit -= 1
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire_type == LENGTH_DELIMITED:
            length, at = _varint(data, at)
        else:
            length = {FIXED64: 8, FIXED32: 4}.get(wire_type, -1)
        if length < 0 or at + length > len(data):
            raise ModelError(_DAMAGED)
        yield number, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Returns the variable-length integer at an offset, and the offset behind it. Raises ModelError."""
    value = 0
    for position, byte in enumerate(data[at : at + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, at + position + 1
    raise ModelError(_DAMAGED)
