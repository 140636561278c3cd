"""The contract's text and the statistics inside an .onnx file.

The protobuf wire format is read here directly (https://protobuf.dev/programming-guides/encoding/): the
package onnx is large, and a hostile file could make it allocate without limit.
"""

import base64
import binascii
from collections.abc import Iterator

from runtime.common.errors import ModelError
from runtime.model_file.files import CONTRACT_NAME, MAX_JSON_BYTES, MAX_STATISTICS_BYTES

# Field numbers of onnx.proto: ModelProto.metadata_props, and key and value of a StringStringEntryProto.
METADATA_PROPS, KEY, VALUE = 14, 1, 2
STATISTICS_KEY = "statistics"  # its value is base64
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5  # wire types
MAX_VARINT_BYTES = 10
MAX_FIELDS = 1000  # of the outermost message; an export writes six

_DAMAGED = "is truncated, or not an ONNX file: copy it again, or export it"


def read_contract_text(data: bytes) -> bytes:
    """Returns the value under contract.json in ModelProto.metadata_props. Raises ModelError."""
    return bytes(_read_property(data, CONTRACT_NAME, MAX_JSON_BYTES))


def read_statistics_bytes(data: bytes) -> bytes:
    """Returns the bytes of the ModelStatistics in ModelProto.metadata_props. Raises ModelError."""
    text = _read_property(data, STATISTICS_KEY, 4 * MAX_STATISTICS_BYTES // 3 + 4)
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ModelError(f"its {STATISTICS_KEY} are not base64: export it again") from None


def _read_property(data: bytes, name: str, limit: int) -> memoryview:
    for number, value in _fields(memoryview(data), MAX_FIELDS):
        if number == METADATA_PROPS and isinstance(value, memoryview):
            entry = dict(_fields(value, 2))
            key, text = entry.get(KEY), entry.get(VALUE)
            if not isinstance(key, memoryview) or not isinstance(text, memoryview):
                continue
            if key == name.encode():
                if len(text) > limit:
                    raise ModelError(f"its {name} is over {limit:,} bytes")
                return text
    raise ModelError(f"holds no {name}: it was not made by `python -m export`")


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
