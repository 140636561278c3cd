"""The contract's text and the statistics inside an .onnx file, and a check of the graph.

The protobuf wire format is read here directly (https://protobuf.dev/programming-guides/encoding/): the
package onnx is large, and a hostile file could make it allocate without limit.
"""

import base64
import binascii
from collections.abc import Iterator
from math import prod

from runtime.common.errors import ModelError
from runtime.model_file.files import CONTRACT_NAME, MAX_JSON_BYTES, MAX_OUTPUT_VALUES, MAX_STATISTICS_BYTES

# Field numbers of onnx.proto: ModelProto.metadata_props, and key and value of a StringStringEntryProto.
METADATA_PROPS, KEY, VALUE = 14, 1, 2
STATISTICS_KEY = "statistics"  # its value is base64
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5  # wire types
MAX_VARINT_BYTES = 10
MAX_TAG = 2**32 - 1  # engines drop the bits above it, and would read another field than this module
MAX_FIELDS = 1000  # of the outermost message; an export writes six
MAX_GRAPH_FIELDS = 100_000  # of all messages of the graph; the released model has about 2,000


# The messages of onnx.proto that hold a tensor, at any depth, by message and field number.
# https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_NESTED: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "subgraph": {1: "node", 5: "tensor", 15: "sparse"},
    "attribute": {5: "tensor", 6: "subgraph", 10: "tensor", 11: "subgraph", 22: "sparse", 23: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "subgraph", 2: "subgraph"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # fields of a TensorProto
OUTPUT = 12  # of a GraphProto: a ValueInfoProto
TYPE, TENSOR_TYPE, SHAPE, DIM, DIM_VALUE = 2, 1, 2, 1, 1  # the way from there to the size of a dimension
DIM_PARAM = 2  # the name of a dimension, instead of its size
ORT_FORMAT = b"ORTM"  # bytes 4 to 8 of ONNX Runtime's own format, which it detects by them

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


def check_graph(data: bytes) -> None:
    """Raises ModelError when the file is not all of the model, or declares outputs that no export writes.

    An engine would read a tensor's external data from the folder it is started in, and allocate an output of
    any size. Every tensor is visited: in the graph, in subgraphs of nodes, and in functions.
    """
    if data[4:8] == ORT_FORMAT:
        raise ModelError("is in ONNX Runtime's own format: export it again")
    remaining = MAX_GRAPH_FIELDS
    stack = [("model", memoryview(data))]
    while stack:
        message, content = stack.pop()
        for number, value in _fields(content, remaining):
            remaining -= 1
            if message == "tensor" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value)):
                raise ModelError("keeps values in another file, which no export does: export it again")
            if not isinstance(value, memoryview):
                continue
            if message == "graph" and number == OUTPUT:
                _check_output_size(value)
            if nested := _NESTED[message].get(number):
                stack.append((nested, value))


def _check_output_size(value_info: memoryview) -> None:
    """Raises ModelError unless all dimensions but the first have a size, and their product is in bounds."""
    sizes = [
        _dimension(dim)
        for type in _messages(value_info, TYPE)
        for tensor in _messages(type, TENSOR_TYPE)
        for shape in _messages(tensor, SHAPE)
        for dim in _messages(shape, DIM)
    ]
    first, *others = sizes or [None, None]
    values = prod(MAX_OUTPUT_VALUES + 1 if size is None else size for size in (first or 1, *others))
    if values > MAX_OUTPUT_VALUES:
        raise ModelError(
            f"declares an output of unknown size or of over {MAX_OUTPUT_VALUES:,} values: export it again"
        )


def _dimension(dim: memoryview) -> int | None:
    """Returns the size of a dimension, 1 or more; None when it has a name, or nothing."""
    fields = list(_fields(dim, MAX_FIELDS))
    if any(number == DIM_PARAM for number, _ in fields):
        return None
    # Repeated, the last value counts for an engine: the largest is on the safe side.
    sizes = (size for number, size in fields if number == DIM_VALUE and isinstance(size, int))
    return max(sizes, default=0) or None


def _messages(data: memoryview, number: int) -> Iterator[memoryview]:
    """Yields the messages in the fields of this number."""
    for found, value in _fields(data, MAX_FIELDS):
        if found == number and isinstance(value, memoryview):
            yield value


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
        if tag > MAX_TAG:
            raise ModelError(_DAMAGED)
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
    if at < len(data) and data[at] < 0x80:  # one byte, which most of them are
        return data[at], at + 1
    value = 0
    for position, byte in enumerate(data[at : at + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, at + position + 1
    raise ModelError(_DAMAGED)
