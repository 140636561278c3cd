"""The contract inside .tflite and .onnx files, hostile ones included."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from runtime.common.errors import ModelError
from runtime.model_file.files import MAX_OUTPUT_VALUES
from runtime.model_file.formats import check_content, read_contract
from runtime.model_file.loader import open_model
from tests.fuzz.targets import forged_offset
from tests.helpers import RELEASED
from tests.runtime.conftest import CONTRACT


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_contract_raises_model_error(method: int) -> None:
    """Found by tests/fuzz: LZMA's own errors came through, and its file may ask for gigabytes."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", method) as archive:
        archive.writestr("contract.json", CONTRACT.to_json())
    with pytest.raises(ModelError, match="is compressed"):
        read_contract(b"\0\0\0\0TFL3" + zipped.getvalue(), "tflite")


def test_a_large_or_forged_zip_raises_model_error() -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("contract.json", b" " * 200_000_000)  # 200 kB here
    with pytest.raises(ModelError, match="over"):
        read_contract(b"\0\0\0\0TFL3" + zipped.getvalue(), "tflite")
    forged = zipped.getvalue().replace((200_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    with pytest.raises(ModelError):
        read_contract(b"\0\0\0\0TFL3" + forged, "tflite")


def test_an_entry_before_the_archive_raises_model_error() -> None:
    with pytest.raises(ModelError, match="is truncated"):
        read_contract(forged_offset(), "tflite")


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\x72\xff\xff\xff\xff\x0f", b"\x08\x07", b"\x0b\x0c"])
def test_bytes_that_are_not_onnx_raise_model_error(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"truncated|holds no"):
        read_contract(data, "onnx")


def test_an_integer_that_does_not_end_raises_model_error() -> None:
    """The time to read it would grow with the square of its length."""
    with pytest.raises(ModelError, match="truncated"):
        read_contract(b"\x08" + 10 * b"\x80" + b"\x01", "onnx")


@pytest.mark.parametrize(
    "data",
    [
        b"\x72\x80\x89\x7a" + 1_000_000 * b"\x1a\0",  # an entry of metadata_props, and what is in it
        1_000_000 * b"\x08\0",
        1_000_000 * b"\x72\0",
    ],
)
def test_an_onnx_file_with_a_million_fields_is_rejected_in_little_memory(data: bytes) -> None:
    """1.2 MB of them took 46 MB and 0.75 s, and a file may have a gigabyte."""
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="has more fields than"):
            read_contract(data, "onnx")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def external(where: str = "README.md") -> TensorProto:
    """A tensor whose values lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=where)
    return tensor


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def subgraph(tensor: TensorProto) -> onnx.NodeProto:
    """A node that holds a graph, which holds a node with the tensor."""
    graph = helper.make_graph([constant(tensor)], "branch", [], [])
    return helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph)


def function(tensor: TensorProto) -> onnx.FunctionProto:
    return helper.make_function("d", "f", ["x"], ["y"], [subgraph(tensor)], [])


def sparse(tensor: TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=tensor, dims=[1])


def attribute(**fields: object) -> onnx.NodeProto:
    node = onnx.NodeProto(op_type="N")
    node.attribute.append(onnx.AttributeProto(name="a", **fields))  # type: ignore[arg-type]
    return node


PLACES: dict[str, Callable[[onnx.ModelProto], object]] = {
    "initializer": lambda model: model.graph.initializer.append(external()),
    "sparse initializer": lambda model: model.graph.sparse_initializer.append(sparse(external())),
    "sparse indices": lambda model: model.graph.sparse_initializer.append(
        onnx.SparseTensorProto(indices=external())
    ),
    "node": lambda model: model.graph.node.append(constant(external())),
    "list": lambda model: model.graph.node.append(attribute(tensors=[external()])),
    "sparse attribute": lambda model: model.graph.node.append(attribute(sparse_tensor=sparse(external()))),
    "sparse list": lambda model: model.graph.node.append(attribute(sparse_tensors=[sparse(external())])),
    "subgraph": lambda model: model.graph.node.append(subgraph(external())),
    "function": lambda model: model.functions.append(function(external())),
    "default of a function": lambda model: model.functions.append(
        onnx.FunctionProto(attribute_proto=[onnx.AttributeProto(name="a", t=external())])
    ),
    "initializer of a subgraph": lambda model: model.graph.node.append(
        attribute(g=onnx.GraphProto(initializer=[external()]))
    ),
    "sparse initializer of a subgraph": lambda model: model.graph.node.append(
        attribute(g=onnx.GraphProto(sparse_initializer=[sparse(external())]))
    ),
    "list of subgraphs": lambda model: model.graph.node.append(
        attribute(graphs=[onnx.GraphProto(node=[constant(external())])])
    ),
    "start of training": lambda model: model.training_info.append(
        onnx.TrainingInfoProto(initialization=onnx.GraphProto(initializer=[external()]))
    ),
    "training": lambda model: model.training_info.append(
        onnx.TrainingInfoProto(algorithm=helper.make_graph([constant(external())], "g", [], []))
    ),
    "location alone": lambda model: model.graph.initializer.append(
        TensorProto(name="w", data_location=TensorProto.EXTERNAL)
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_onnx_file_that_needs_another_file_is_refused(place: str, colours: Path, tmp_path: Path) -> None:
    """ONNX Runtime reads it from the folder in which the command was started."""
    path = tmp_path / "model.onnx"
    model = onnx.load(str(colours / "colours_float32.onnx"))
    path.write_bytes(model.SerializeToString())
    assert open_model(path)
    PLACES[place](model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=f"{path}: keeps values in another file"):
        open_model(path)


@pytest.mark.parametrize("bit", [32, 34])
def test_a_field_number_that_an_engine_reads_as_another_one_is_refused(bit: int, colours: Path) -> None:
    """ONNX Runtime and OpenVINO drop the bits above 32, so field 7 + 2^29 is the graph to them alone."""
    graph = onnx.GraphProto(initializer=[external()]).SerializeToString()
    tag = (7 << 3 | 2) + (1 << bit)
    wide_tag = bytes(tag >> 7 * at & 0x7F | (at < 4) << 7 for at in range(5))
    data = (colours / "colours_float32.onnx").read_bytes() + wide_tag + bytes([len(graph)]) + graph
    with pytest.raises(ModelError, match="not an ONNX file"):
        check_content(data, "onnx")


def test_a_file_in_the_format_of_onnx_runtime_is_refused() -> None:
    """ONNX Runtime decides by these bytes, which a protobuf message may hold too."""
    with pytest.raises(ModelError, match="own format"):
        check_content(b"\x12\x06\0\0ORTM", "onnx")


@pytest.mark.parametrize(
    "shape", [[1, MAX_OUTPUT_VALUES + 1], [2**20, 2**20], [1, 0, 2**30], ["N", "M"], ["N", -1], None, []]
)
def test_an_onnx_file_with_a_large_output_is_refused(shape: list[int | str] | None, colours: Path) -> None:
    model = onnx.load(str(colours / "colours_float32.onnx"))
    check_content(model.SerializeToString(), "onnx")
    model.graph.output.append(helper.make_tensor_value_info("large", TensorProto.FLOAT, shape))
    with pytest.raises(ModelError, match="output of unknown size or of over"):
        check_content(model.SerializeToString(), "onnx")


def field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


def test_a_size_that_a_name_replaces_is_unknown(colours: Path) -> None:
    """A dimension has a size or a name: an engine takes the last one."""
    dimension = b"\x08\x01" + field(2, b"N")
    tensor = b"\x08\x01" + field(2, field(1, dimension) + field(1, dimension))
    output = onnx.ValueInfoProto.FromString(field(2, field(1, tensor)))
    assert [dim.dim_param for dim in output.type.tensor_type.shape.dim] == ["N", "N"]
    graph = field(7, field(12, field(2, field(1, tensor))))
    with pytest.raises(ModelError, match="output of unknown size or of over"):
        check_content((colours / "colours_float32.onnx").read_bytes() + graph, "onnx")


def test_a_graph_of_a_million_fields_is_rejected_in_little_memory(colours: Path) -> None:
    model = onnx.load(str(colours / "colours_float32.onnx"))
    model.graph.node.extend([onnx.NodeProto(op_type="N") for _ in range(200_000)])
    data = model.SerializeToString()
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="has more fields than"):
            check_content(data, "onnx")
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def test_the_released_model_passes() -> None:
    for path in RELEASED.glob("*.onnx"):
        check_content(path.read_bytes(), "onnx")
