"""Vela's files of the small network, and the bounds on them."""

from __future__ import annotations

import re

import pytest

from export.parity.gates import FAILED
from export.targets.ethos_u import CONFIGURATIONS, broken_compilation, compile_with_vela
from export.targets.stage import ExportedModel
from runtime.common.errors import UserError
from tests.export.targets.conftest import Build, require
from tests.export.targets.damage import damaged_tflite


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ethos-u55", "ethos-u65", "ethos-u85"])
def test_the_neural_processor_computes_all_convolutions(build: Build, name: str) -> None:
    require(name)
    compiled = build(name)
    assert compiled.failures == [] and compiled.verdict != FAILED
    assert b"ethos-u" in compiled.files[f"small_{name}.tflite"]  # the name of the operator with the commands
    npu, operators = map(int, compiled.report["operators on the NPU"].split(" of "))
    assert 13 < npu < operators
    assert re.match(r"\d+\.\d ms: an estimate", compiled.report["latency"])
    assert compiled.compiler.endswith(CONFIGURATIONS[name])


@pytest.mark.slow
def test_damaged_weights_fail(build: Build, exported: ExportedModel) -> None:
    require("ethos-u55")
    compiled = build("ethos-u55", damaged_tflite(exported.files["tflite", "full_int8"]))
    assert compiled.verdict == FAILED and "over" in compiled.failures[0]


@pytest.mark.slow
def test_convolutions_in_float_fail(exported: ExportedModel, build: Build) -> None:
    require("ethos-u55")
    compiled = build("ethos-u55", exported.files["tflite", "int8"])
    assert compiled.verdict == FAILED and "of the multiplications run on the NPU" in compiled.failures[0]


@pytest.mark.slow
def test_other_outputs_fail(exported: ExportedModel) -> None:
    full, float32 = exported.files["tflite", "full_int8"], exported.files["tflite", "float32"]
    assert broken_compilation(full, full, 1.0) == []
    (line,) = broken_compilation(full, full, 0.99)
    assert line.startswith("99.0% of the multiplications")
    renamed = float32.replace(b"probabilities", b"probability_x")
    (line,) = broken_compilation(full, renamed, 1.0)
    assert "probability_x" in line


def test_a_file_that_vela_cannot_read_is_one_line() -> None:
    require("ethos-u55")
    with pytest.raises(UserError, match=r"^ethos-u-vela cannot compile this model: .+; report it") as raised:
        compile_with_vela(b"TFL3 damaged", "ethos-u55-128")
    assert "\n" not in str(raised.value)
