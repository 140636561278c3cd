"""OpenVINO's IR of the small network: it agrees with the trained model, and a damaged one does not."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from export.parity.gates import FAILED
from export.targets.stage import ExportedModel
from runtime.model_file.contract import Contract
from tests.export.targets.conftest import Build, require
from tests.export.targets.damage import damaged_onnx

pytestmark = pytest.mark.slow


def test_the_ir_agrees_and_holds_the_labels(build: Build, exported: ExportedModel, tmp_path: Path) -> None:
    require("openvino")
    compiled = build("openvino")
    assert compiled.failures == [] and compiled.verdict != FAILED
    assert list(compiled.files) == ["small_openvino.xml", "small_openvino.bin"]
    for name, data in compiled.files.items():
        (tmp_path / name).write_bytes(data)
    import openvino

    model = openvino.Core().read_model(tmp_path / compiled.main_file)
    assert [port.get_any_name() for port in model.outputs] == ["probabilities", "known", "features"]
    assert list(model.input().shape) == [1, *exported.reference.photos.shape[1:]]
    assert model.get_rt_info(["model_info", "labels"]).astype(str).split() == list(exported.contract.labels)
    text = model.get_rt_info(["model_info", "contract"]).astype(str)
    assert Contract.from_json(text.encode()) == exported.contract
    assert ElementTree.fromstring(compiled.files[compiled.main_file]).tag == "net"


def test_damaged_weights_fail(build: Build, exported: ExportedModel) -> None:
    require("openvino")
    compiled = build("openvino", damaged_onnx(exported.files["onnx", "int8"]))
    assert compiled.verdict == FAILED and "over" in compiled.failures[0]
