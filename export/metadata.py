"""Embed the contract in a model file, so that the file works without the folder.

A .tflite gets standard TFLite Metadata: a description of its tensors in a buffer named TFLITE_METADATA, and
the associated files in a zip after the FlatBuffer. An .onnx gets entries in metadata_props.
https://ai.google.dev/edge/litert/conversion/tensorflow/metadata
"""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from flatbuffers.builder import Builder

from export.flatbuffer import pack, unpack
from runtime.model_file.contract import Contract
from runtime.model_file.files import CONTRACT_NAME, STATISTICS_NAME
from runtime.model_file.onnx import STATISTICS_KEY

LABELS_NAME = "labels.txt"  # one label per line


def embed_contract(data: bytes, format: str, contract: Contract, statistics: bytes = b"") -> bytes:
    """The model file `data` with the contract inside, and with the statistics of its features unless they
    are empty. Equal inputs give equal bytes.
    """
    return _EMBED[format](data, contract, statistics)


def _embed_in_tflite(data: bytes, contract: Contract, statistics: bytes) -> bytes:
    """Adds the metadata and the zip, and renames tensors to their names in the signature."""
    model = unpack(data)
    (signature,) = model.signatureDefs
    tensors = model.subgraphs[signature.subgraphIndex].tensors
    for entry in (*signature.inputs, *signature.outputs):
        tensors[entry.tensorIndex].name = entry.name
    outputs = [_text(tensors[i].name) for i in model.subgraphs[signature.subgraphIndex].outputs]
    metadata = _tflite_metadata(contract, outputs)
    model.buffers.append(schema.BufferT(data=np.frombuffer(metadata, np.uint8)))
    entry = schema.MetadataT(name="TFLITE_METADATA", buffer=len(model.buffers) - 1)
    model.metadata = [*(model.metadata or []), entry]
    return _with_zip(pack(model), contract, statistics)


def _embed_in_onnx(data: bytes, contract: Contract, statistics: bytes) -> bytes:
    proto = onnx.load_model_from_string(data)
    properties = {CONTRACT_NAME: contract.to_json(), LABELS_NAME: _label_lines(contract)}
    if statistics:
        properties[STATISTICS_KEY] = base64.b64encode(statistics).decode()
    onnx.helper.set_model_props(proto, properties)
    return bytes(proto.SerializeToString())


_EMBED: dict[str, Callable[[bytes, Contract, bytes], bytes]] = {
    "tflite": _embed_in_tflite,
    "onnx": _embed_in_onnx,
}


def _label_lines(contract: Contract) -> str:
    return "".join(f"{label}\n" for label in contract.labels)


def _with_zip(data: bytes, contract: Contract, statistics: bytes) -> bytes:
    """Appends a zip. MediaPipe refuses deflated entries, so they are stored; their date is fixed to 1980.

    The contract comes last: its reader looks at the end of the file only.
    """
    entries: dict[str, str | bytes] = {LABELS_NAME: _label_lines(contract)}
    if statistics:
        entries[STATISTICS_NAME] = statistics
    entries[CONTRACT_NAME] = contract.to_json()
    file = io.BytesIO()
    file.write(data)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, on every system, so that the bytes are equal
            archive.writestr(entry, content)
    return file.getvalue()


# A FlatBuffers table: values by field number. NumPy scalars are stored in place; strings, lists and tables
# are stored by their offset.
Table = dict[int, Any]

# Enumerators and union members of metadata_schema.fbs.
_RGB = np.int8(1)  # ColorSpaceType
_FEATURE_PROPERTIES, _IMAGE_PROPERTIES = np.uint8(1), np.uint8(2)  # ContentProperties
_NORMALIZATION_OPTIONS = np.uint8(1)  # ProcessUnitOptions
_TENSOR_AXIS_LABELS = np.int8(2)  # AssociatedFileType


def _tflite_metadata(contract: Contract, outputs: Sequence[str]) -> bytes:
    """A ModelMetadata table. Field numbers are those of TensorFlow's metadata_schema.fbs, version 1.5.0."""
    height, width = contract.input_size
    image: Table = {
        0: "image",  # name
        1: "RGB picture, 0 to 255, stretched to this size",  # description
        3: {0: _IMAGE_PROPERTIES, 1: {0: _RGB, 1: {0: np.uint32(width), 1: np.uint32(height)}}},  # content
        # process_units: mean 0 and deviation 1, because the graph normalizes the pixels
        4: [{0: _NORMALIZATION_OPTIONS, 1: {0: [0.0], 1: [1.0]}}],
        5: {0: [255.0], 1: [0.0]},  # stats: max, min
    }
    subgraph: Table = {2: [image], 3: [_output(name) for name in outputs]}  # input and output tensor metadata
    model: Table = {
        0: contract.name,
        1: "VGG16 picture classifier, made by vgg-edge",  # description
        3: [subgraph],
        7: "1.0.0",  # min_parser_version: the version of the newest field here
    }
    builder = Builder(2**12)
    builder.Finish(_write(builder, model), b"M001")
    return bytes(builder.Output())


def _output(name: str) -> Table:
    tensor: Table = {0: name, 3: {0: _FEATURE_PROPERTIES, 1: {}}}  # content
    if name != "features":  # which have no fixed range
        tensor[5] = {0: [1.0], 1: [0.0]}  # stats: max, min
    if name == "probabilities":
        tensor[6] = [{0: LABELS_NAME, 2: _TENSOR_AXIS_LABELS}]  # associated_files
    return tensor


def _write(builder: Builder, value: Any) -> int:
    """Writes a string, a vector or a table after the values that it refers to. Returns its offset."""
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, list):
        if all(isinstance(item, float) for item in value):
            return int(builder.CreateNumpyVector(np.array(value, np.float32)))
        items = [_write(builder, item) for item in value]
        builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            builder.PrependUOffsetTRelative(item)
        return int(builder.EndVector())
    offsets = {
        slot: _write(builder, item) for slot, item in value.items() if not isinstance(item, np.generic)
    }
    builder.StartObject(max(value, default=-1) + 1)
    for slot, item in value.items():
        if isinstance(item, np.uint32):
            builder.PrependUint32Slot(slot, int(item), 0)
        elif isinstance(item, (np.int8, np.uint8)):  # enumerations, one byte each
            builder.PrependUint8Slot(slot, int(item), 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slot, offsets[slot], 0)
    return int(builder.EndObject())


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
