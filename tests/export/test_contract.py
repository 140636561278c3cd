"""A contract that a device would refuse is refused before the work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.contract import check_contract
from export.model_folder import ExportedFile, model_folder
from runtime.common.errors import UserError
from runtime.model_file.contract import Contract
from runtime.model_file.files import MAX_JSON_BYTES
from runtime.model_file.index import Index
from tests.export.parity.results import RESULT
from train.run import open_run

FILES = (("tflite", "float32"), ("onnx", "float32"), ("tflite", "int8"), ("onnx", "int8"))


@pytest.mark.parametrize(
    ("changes", "out", "fact"),
    [
        ({}, "2025-01-31T12:00:00", r"m/.*'2025-01-31T12:00:00_float32\.tflite'.*--out"),
        ({}, "a\x1b[2J", "name.*--out"),
        ({}, "a\udce9", "name.*--out"),
        ({}, "a" * 190, "name.*--out"),
        ({"labels": ("daisy", "d" * 201)}, "m", "run runs/r: .*label.*train again"),
        ({"labels": tuple(map(str, range(10_001)))}, "m", "labels.*10,000"),
        ({"labels": tuple(f"{n:0200}" for n in range(6_000))}, "m", "1,048,576 bytes"),
        ({"versions": {"keras": None}}, "m", "versions"),
    ],
)
def test_a_contract_that_a_device_would_refuse_is_refused(
    contract: Contract, changes: dict[str, Any], out: str, fact: str
) -> None:
    check_contract(contract, FILES, Path("runs/r"), Path("m"))
    with pytest.raises(UserError, match=fact):
        check_contract(replace(contract, name=out, **changes), FILES, Path("runs/r"), Path("m", out))


def test_an_index_that_its_figures_make_too_large_is_not_written(
    synthetic_run: Path, contract: Contract, float_files: dict[tuple[str, str], bytes]
) -> None:
    room = MAX_JSON_BYTES - len(Index(contract, ()).to_json().encode())
    full = replace(contract, base_sha256=room * "a")
    key = ("tflite", "float32")
    with pytest.raises(UserError, match=r"model\.json: .*1,048,576 bytes"):
        model_folder(full, open_run(synthetic_run), [ExportedFile("small", key, float_files[key])], [RESULT])
