"""rknn-toolkit2 on the small network. VGG_EDGE_RKNN_PYTHON names the Python of an environment that has it.

The environment has 5.6 GB, so `make setup` does not make it, and continuous integration skips these tests.
test_npu_network.py covers what this project does to the network before the toolkit.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from export.__main__ import main
from export.parity.gates import FAILED
from export.targets.rk3588 import check_rknn
from export.targets.stage import ExportedModel
from runtime.common.errors import UserError
from tests.export.targets.conftest import Build, require
from tests.export.targets.damage import damaged_onnx


@pytest.mark.slow
def test_the_simulator_agrees(build: Build) -> None:
    require("rk3588")
    compiled = build("rk3588")
    assert compiled.failures == [] and compiled.verdict != FAILED
    assert compiled.files["small_rk3588.rknn"].startswith(b"RKNN")
    assert compiled.report["precision"].startswith(("int8", "float16"))


@pytest.mark.slow
def test_damaged_weights_fail(build: Build, exported: ExportedModel) -> None:
    require("rk3588")
    compiled = build("rk3588", damaged_onnx(exported.files["onnx", "float32"]))
    assert compiled.verdict == FAILED and "over" in compiled.failures[0]


@pytest.mark.parametrize("python", [Path("nowhere/python"), Path(sys.executable)])
def test_a_missing_environment_names_the_commands_that_make_it(python: Path) -> None:
    with pytest.raises(UserError, match=r"python3\.11 -m venv .+pip install rknn-toolkit2") as raised:
        check_rknn(python)
    assert "\n" not in str(raised.value) and str(raised.value).startswith(f"{python}: ")


def test_the_command_stops_before_it_loads_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere", "--target", "rk3588", "--target-python", "nowhere/python"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: nowhere/python: ") and "rknn-toolkit2" in line
