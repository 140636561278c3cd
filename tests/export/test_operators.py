"""The check of a file's operators against other programs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema

from export import operators
from export.flatbuffer import pack, unpack
from export.operators import file_operators, new_operators, operators_report, read_table, write_table
from export.parity.result import FileKey
from tests.helpers import RELEASED

TFLITE, ONNX = RELEASED / "flowers_int8.tflite", RELEASED / "flowers_int8.onnx"


def test_the_released_files_have_no_operator_that_is_new_to_another_program() -> None:
    """A change of the graph that fails here needs `make test-clients` before a release."""
    tflite = new_operators("tflite", TFLITE.read_bytes())
    assert len(tflite) >= 7 and not any(tflite.values())
    onnx_file = new_operators("onnx", ONNX.read_bytes())
    floats_only = {program for program, new in onnx_file.items() if new}
    assert len(onnx_file) >= 10 and floats_only == {"MNN", "ncnn"}


def test_known_has_no_sum_of_squares_of_a_product() -> None:
    """RKNN's compiler never finishes with MatMul, a square and a sum."""
    nodes = onnx.load(ONNX).graph.node
    products = {node.output[0] for node in nodes if node.op_type == "MatMul"}
    squares = {
        node.output[0]
        for node in nodes
        if node.op_type == "Mul" and node.input[0] == node.input[1] in products
    }
    assert len(squares) == 1  # of the detector
    assert not [node.name for node in nodes if node.op_type == "ReduceSum" and squares & {*node.input}]


def test_a_newer_version_of_an_operator_is_new_to_every_program() -> None:
    """It locked tflite-runtime 2.14 out of the dynamic file of a model with one output in a layer."""
    file = unpack(TFLITE.read_bytes())
    for code in file.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.FULLY_CONNECTED:
            code.version = 12
    data = pack(file)
    assert set(map(tuple, new_operators("tflite", data).values())) == {("FULLY_CONNECTED 12",)}
    (_, line) = operators_report({FileKey("tflite", "int8"): data}).splitlines()
    assert line.startswith("tflite int8: 0 of ") and line.endswith("new to all: FULLY_CONNECTED 12")


def test_an_operator_that_no_file_had_is_new_to_every_program() -> None:
    model = onnx.load(ONNX)
    model.graph.node[-1].op_type = "HardSwish"
    new = new_operators("onnx", model.SerializeToString())
    assert new and all("HardSwish 14" in operators for operators in new.values())


def test_an_onnx_operator_has_the_version_of_its_definition() -> None:
    found = file_operators("onnx", ONNX.read_bytes())
    assert found["Conv"] == 11 and found["QuantizeLinear"] == 19  # in opset 19


def test_a_written_table_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"tflite": {"a, b": {"ADD": 1, "CONV_2D": 3}, "c": {"ADD": 2}}, "onnx": {"c": {"Add": 14}}}
    monkeypatch.setattr(operators, "TABLE", tmp_path / "operators.csv")
    write_table(table)
    assert {format: read_table(format) for format in table} == table
