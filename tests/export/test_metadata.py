"""The embedded contract is read by the runtime and by zipfile."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema

from export.metadata import embed_contract
from export.parity.result import FileKey
from runtime.model_file.contract import Contract
from runtime.model_file.formats import read_contract, read_statistics_bytes
from runtime.model_file.statistics import fit_statistics

Files = dict[FileKey, bytes]


def test_the_runtime_reads_the_embedded_contract(embedded: Files, contract: Contract) -> None:
    for (format, _), data in embedded.items():
        assert read_contract(data, format) == contract


def test_the_runtime_reads_the_embedded_statistics(float_files: Files, contract: Contract) -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.random((12, 32)), np.arange(12) % len(contract.labels)
    data = fit_statistics(features, labels, features[:6], labels[:6], np.ones(6)).to_bytes()
    for (format, precision), plain in float_files.items():
        file = embed_contract(plain, format, contract, data)
        assert read_statistics_bytes(file, format) == data
        assert read_contract(file, format) == contract
        assert embed_contract(plain, format, contract, data) == file, precision


def test_an_onnx_file_also_lists_the_labels_as_plain_text(embedded: Files, contract: Contract) -> None:
    file = onnx.load_model_from_string(embedded["onnx", "float32"])
    properties = {entry.key: entry.value for entry in file.metadata_props}
    assert properties["labels.txt"].splitlines() == list(contract.labels)


def test_embedding_repeats_byte_for_byte(float_files: Files, embedded: Files, contract: Contract) -> None:
    for key, data in float_files.items():
        assert embed_contract(data, key.format, contract) == embedded[key]


def test_zip_entries_are_stored_with_a_fixed_date(embedded: Files, contract: Contract) -> None:
    with zipfile.ZipFile(io.BytesIO(embedded["tflite", "float32"])) as archive:
        entries = archive.infolist()
        assert [entry.filename for entry in entries] == ["labels.txt", "contract.json"]
        for entry in entries:
            assert entry.compress_type == zipfile.ZIP_STORED  # MediaPipe refuses deflated entries
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
        assert archive.read("labels.txt").decode().splitlines() == list(contract.labels)
        assert Contract.from_json(archive.read("contract.json")) == contract


def test_tensors_have_the_names_of_the_contract(embedded: Files) -> None:
    model = schema.ModelT.InitFromPackedBuf(embedded["tflite", "float32"])
    graph = model.subgraphs[0]
    assert [graph.tensors[i].name for i in graph.inputs] == [b"image"]
    assert [graph.tensors[i].name for i in graph.outputs] == [b"probabilities", b"features"]


def test_weights_are_aligned_to_16_bytes(embedded: Files) -> None:
    """The schema requires multiples of 16 bytes, and kernels may rely on them."""
    for (format, _), data in embedded.items():
        if format == "tflite":
            model = schema.Model.GetRootAs(data)
            for i in range(model.BuffersLength()):
                buffer = model.Buffers(i)
                if buffer.DataLength():
                    assert buffer._tab.Vector(buffer._tab.Offset(4)) % 16 == 0


def test_tflite_metadata_describes_the_tensors(embedded: Files, contract: Contract) -> None:
    """Read with the field numbers of metadata_schema.fbs and a reader that shares no code with the writer."""
    model = schema.ModelT.InitFromPackedBuf(embedded["tflite", "dynamic"])
    (entry,) = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    data = bytes(model.buffers[entry.buffer].data)
    assert data[4:8] == b"M001"
    root = Table(data, struct.unpack_from("<I", data)[0])
    assert root.text(0) == contract.name
    assert root.text(7) == "1.0.0"
    (subgraph,) = root.tables(3)
    (image,), (probabilities, features) = subgraph.tables(2), subgraph.tables(3)
    assert image.text(0) == "image"
    content = image.table(3)
    assert content.scalar(0, "B") == 2  # ImageProperties
    assert content.table(1).scalar(0, "b") == 1  # RGB
    size = content.table(1).table(1)
    assert (size.scalar(1, "I"), size.scalar(0, "I")) == contract.input_size
    (unit,) = image.tables(4)
    assert unit.scalar(0, "B") == 1  # NormalizationOptions
    assert (unit.table(1).floats(0), unit.table(1).floats(1)) == ([0.0], [1.0])
    assert (probabilities.text(0), features.text(0)) == ("probabilities", "features")
    stats = probabilities.table(5)
    assert (stats.floats(0), stats.floats(1)) == ([1.0], [0.0])
    with pytest.raises(AssertionError, match="missing"):  # features have no fixed range
        features.table(5)
    (labels,) = probabilities.tables(6)
    assert (labels.text(0), labels.scalar(2, "b")) == ("labels.txt", 2)  # TENSOR_AXIS_LABELS


class Table:
    """A FlatBuffers table: https://flatbuffers.dev/internals/."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position

    def field(self, number: int) -> int:
        vtable = self.position - self._read("i", self.position)
        offset = self._read("H", vtable + 4 + 2 * number) if 4 + 2 * number < self._read("H", vtable) else 0
        assert offset, f"field {number} is missing"
        return self.position + offset

    def scalar(self, number: int, kind: str) -> int:
        return int(self._read(kind, self.field(number)))

    def table(self, number: int) -> Table:
        return Table(self.data, self._follow(self.field(number)))

    def text(self, number: int) -> str:
        at = self._follow(self.field(number))
        return self.data[at + 4 : at + 4 + self._read("I", at)].decode()

    def tables(self, number: int) -> list[Table]:
        at = self._follow(self.field(number))
        return [Table(self.data, self._follow(at + 4 + 4 * i)) for i in range(self._read("I", at))]

    def floats(self, number: int) -> list[float]:
        at = self._follow(self.field(number))
        return list(struct.unpack_from(f"<{self._read('I', at)}f", self.data, at + 4))

    def _follow(self, at: int) -> int:
        return at + int(self._read("I", at))

    def _read(self, kind: str, at: int) -> Any:
        return struct.unpack_from(f"<{kind}", self.data, at)[0]
