"""The fine-tuned run, the compressed run and the released files under models/, on all test photos."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.known import METHODS, RELEASED_METHOD, Descriptors, near_auroc, unrelated_pictures
from export.__main__ import main as export
from export.macs import count_macs
from export.parity.gates import PASSED
from export.photos import read_photos
from export.serving_model import predict
from runtime import Classifier
from tests.accuracy.parity_rows import parity_of_all_pairs
from tests.helpers import RELEASED, ROOT
from train.network.calibration import expected_calibration_error
from train.network.novelty import unknown_rate
from train.run import open_run

FINE_TUNED = ROOT / "models" / "flowers_run"
COMPRESSED = ROOT / "models" / "flowers_compressed"
TEST_PHOTOS = 500


def test_the_fine_tuned_run_reaches_93_percent(flower_photos: Path) -> None:
    """From its float16 weights and from the photos themselves."""
    run = open_run(FINE_TUNED, flower_photos)
    photos = read_photos(run.dataset, "test", (224, 224))
    outputs = predict(run.load_model(), photos.pixels, lambda done: None)
    assert len(photos.truth) == TEST_PHOTOS
    top1 = float((outputs["probabilities"].argmax(1) == photos.truth).mean())
    assert top1 >= 0.93
    assert abs(top1 - run.metrics["test"]["top1"]) <= 0.004
    assert expected_calibration_error(outputs["probabilities"], photos.truth) <= 0.05
    assert unknown_rate(outputs["known"][:, 0], run.thresholds) <= 0.05
    assert np.isfinite(outputs["known"]).all()


@pytest.mark.parametrize(("engine", "format"), [("litert", "tflite"), ("tflite", "tflite"), ("onnx", "onnx")])
def test_the_released_files_lose_at_most_one_point_of_top1(
    engine: str, format: str, flower_photos: Path
) -> None:
    uncompressed = open_run(FINE_TUNED, flower_photos)
    photos = uncompressed.dataset.split("test")
    # In a process without TensorFlow, as on a device: its symbols break tflite-runtime 2.14.
    command = [sys.executable, "-m", "runtime.classify", str(flower_photos / "test"), "--json"]
    command += ["--model", str(RELEASED / f"flowers_int8.{format}"), "--engine", engine]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    labels = {answer["source"]: answer["label"] for answer in map(json.loads, done.stdout.splitlines())}
    correct = sum(labels[str(flower_photos / photo.path)] == photo.label for photo in photos)
    assert len(photos) == len(labels) == TEST_PHOTOS
    assert round(uncompressed.metrics["test"]["top1"] * TEST_PHOTOS) - correct <= 5


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_the_released_files_have_3_mb_and_a_tenth_of_the_macs(format: str) -> None:
    data = (RELEASED / f"flowers_int8.{format}").read_bytes()
    assert len(data) <= 3_000_000
    assert count_macs(data, format) <= 15_346_630_656 / 10


def test_the_released_file_names_a_fifth_of_unrelated_pictures_at_most() -> None:
    classifier = Classifier(RELEASED / "flowers_int8.tflite", engine="litert")
    pictures = unrelated_pictures(classifier.model.contract.input_size)
    named = sum(classifier(picture).known is True for picture in pictures)
    assert len(pictures) == 108
    assert named <= 0.2 * len(pictures)


def test_the_detector_separates_other_pictures_better_than_the_probability(flower_photos: Path) -> None:
    """Near: one flower is left out of the fit. Far: sample pictures of two packages."""
    network = Descriptors(open_run(COMPRESSED, flower_photos))
    known, _, test, truth = network.flowers()
    others = network(unrelated_pictures(network.size))

    def far(method: str) -> float:
        scores = METHODS[method](known, np.concatenate([test, others]))
        return float(roc_auc_score(np.arange(len(scores)) < len(test), scores))

    def near(method: str) -> float:
        return near_auroc(METHODS[method], known, test, truth)

    assert far(RELEASED_METHOD) >= max(0.98, far("maximum probability") + 0.05)
    assert near(RELEASED_METHOD) >= max(0.82, near("maximum probability"))


def test_every_file_of_the_compressed_run_passes_its_gate(flower_photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "flowers"
    assert export([str(COMPRESSED), "--all", "--out", str(out), "--photos-root", str(flower_photos)]) == 0
    for row in parity_of_all_pairs(out, 8):
        assert int(row["n"]) == TEST_PHOTOS
        assert row["verdict"] == PASSED
        assert float(row["uncompressed_agreement"]) >= 0.95
