"""The released files, compressed tenfold, beside the uncompressed model, on all test photos."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from export.__main__ import main
from export.macs import macs
from train.run import open_run

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.parametrize(("engine", "format"), [("litert", "tflite"), ("tflite", "tflite"), ("onnx", "onnx")])
def test_at_most_one_point_of_top1_is_lost(engine: str, format: str, flower_photos: Path) -> None:
    uncompressed = open_run(MODELS / "flowers_run", flower_photos)
    photos = uncompressed.dataset.split("test")
    # As on a device, in a process without TensorFlow, whose symbols tflite-runtime 2.14 stumbles over.
    command = [sys.executable, "-m", "runtime.classify", str(flower_photos / "test"), "--json"]
    command += ["--model", str(MODELS / "flowers" / f"flowers_int8.{format}"), "--engine", engine]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = {answer["source"]: answer["label"] for answer in map(json.loads, done.stdout.splitlines())}
    right = sum(answers[str(flower_photos / photo.path)] == photo.label for photo in photos)
    assert len(photos) == len(answers) == 500
    assert round(uncompressed.metrics["test"]["top1"] * 500) - right <= 5


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_the_files_are_small_and_ask_for_a_tenth(format: str) -> None:
    data = (MODELS / "flowers" / f"flowers_int8.{format}").read_bytes()
    assert len(data) <= 3_000_000
    assert macs(data, format) <= 15_346_630_656 / 10


def test_the_kept_run_is_exported_through_every_gate(flower_photos: Path, tmp_path: Path) -> None:
    run, out = MODELS / "flowers_compressed", tmp_path / "flowers"
    assert main([str(run), "--int8", "--out", str(out), "--photos-root", str(flower_photos)]) == 0
    with (out / "parity.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["precision"] == "int8"]
    assert {row["engine"].split()[0] for row in rows} == {"litert", "tflite", "onnx"}
    for row in rows:
        assert row["verdict"] == "holds" and row["n"] == "500"
        assert float(row["uncompressed_agreement"]) >= 0.95
