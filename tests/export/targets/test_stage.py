"""The command with --target: files, model card, targets.json, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from export.__main__ import main
from export.output_dir import TARGETS_NAME, listed_files
from export.parity.gates import FAILED
from export.parity.result import ParityResult
from export.targets.registry import TARGETS
from export.targets.stage import targets_failures, targets_files, targets_report
from export.targets.target import CompiledTarget
from runtime.common.errors import UserError
from runtime.model_file.index import read_index
from tests.export.targets.conftest import require
from tests.helpers import ROOT

PARITY = ParityResult(
    "tflite", "int8", "litert", 50, 1, 0.9, 0.9, 1, 0.01, 0.02, 0.05, 3.0, known_disagreements=0
)
PATH = Path("m", TARGETS_NAME)
COMPILED = CompiledTarget(
    "tflm", "compiler 1", {"a.cc": b"a", "a.h": b"b"}, {"arena (RAM)": "2 MB"}, PARITY, "the interpreter"
)


@pytest.mark.slow
def test_the_command_writes_and_describes_the_files(
    synthetic_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require("openvino")
    out = tmp_path / "small"
    command = [str(synthetic_run), "--target", "openvino", "--engines", "openvino", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "target openvino: small_openvino.xml, small_openvino.bin (openvino " in printed
    assert {file.precision for file in read_index(out).files} == {"float32", "int8"}  # int8 without a flag
    (described,) = json.loads((out / TARGETS_NAME).read_bytes())
    assert described["target"] == "openvino" and described["parity"]["n"] == 5
    for name, sha256 in described["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == sha256
    assert "`small_openvino.xml`" in (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_failed_gate_exits_with_3_and_replaces_nothing(
    synthetic_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = replace(COMPILED, broken=("the NPU computes 1 % of it",))
    target = replace(TARGETS["rk3588"], check=lambda python: None, build=lambda source, step: failed)
    monkeypatch.setitem(TARGETS, "rk3588", target)
    out = tmp_path / "small"
    options = ["--target", "rk3588", "--engines", "onnx", "--photos", "2", "--out", str(out)]
    assert main([str(synthetic_run), *options]) == 3
    error, summary = capsys.readouterr().err.splitlines()[-2:]
    assert error == "error: target tflm: the NPU computes 1 % of it; report it with compiler 1"
    assert "small.rejected" in summary and not out.exists()
    assert (tmp_path / "small.rejected" / "a.cc").read_bytes() == b"a"
    shutil.rmtree(tmp_path / "small.rejected")


def test_a_target_needs_an_engine_for_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--target", "tflm", "--engines", "onnx"])
    assert "format tflite" in capsys.readouterr().err


def test_the_page_describes_every_target() -> None:
    page = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    assert [name for name in TARGETS if f"`{name}`" not in page] == []


def test_the_report_names_figures_and_verdict() -> None:
    text = targets_report([COMPILED])
    assert "49 of 50 photos get the same label, max |Δp| 0.0500, 50 of 50 the same decision" in text
    assert "too few photos" in text and targets_failures([COMPILED]) == []


def test_a_parity_beyond_the_gate_is_a_failure() -> None:
    worse = replace(COMPILED, parity=replace(PARITY, max_dp=0.3))
    assert worse.verdict == FAILED
    (line,) = targets_failures([worse])
    assert line.startswith("target tflm: max |Δp| 0.3 is over 0.25; ")


def test_compiled_files_are_listed_for_the_signature() -> None:
    files = targets_files([COMPILED])
    assert listed_files(PATH, files[TARGETS_NAME]).keys() == {"a.cc", "a.h"} and targets_files([]) == {}
    assert listed_files(PATH, None) == {}
    for damaged in (b"{", b"[1]", b'[{"files": 3}]', b"{}x", b"\xff"):
        with pytest.raises(UserError, match=r"^m/targets\.json: is damaged"):
            listed_files(PATH, damaged)
