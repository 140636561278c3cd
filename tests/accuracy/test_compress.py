"""The kept compressed run's int8 files beside the uncompressed model, on all test photos."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from export.__main__ import main
from export.macs import macs
from train.run import open_run

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module")
def exported(flower_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "flowers"
    run = MODELS / "flowers_compressed"
    assert main([str(run), "--int8", "--out", str(out), "--photos-root", str(flower_photos)]) == 0
    return out


def test_a_tenth_of_the_work_and_the_same_answers(exported: Path) -> None:
    uncompressed = open_run(MODELS / "flowers_run").metrics["test"]["top1"]
    with (exported / "parity.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["precision"] == "int8"]
    assert {row["engine"].split()[0] for row in rows} == {"litert", "tflite", "onnx"}
    for row in rows:
        assert row["verdict"] == "holds" and row["n"] == "500"
        assert round((uncompressed - float(row["top1"])) * 500) <= 5, "one point"
        assert float(row["uncompressed_agreement"]) >= 0.95


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_its_files_are_small_and_ask_for_a_tenth(exported: Path, format: str) -> None:
    data = (exported / f"flowers_int8.{format}").read_bytes()
    assert len(data) <= 3_000_000
    assert macs(data, format) <= 15_346_630_656 / 10
    released = MODELS / "flowers" / f"flowers_int8.{format}"
    assert macs(released.read_bytes(), format) == macs(data, format)
