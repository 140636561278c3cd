"""The fine-tuned run, the compressed run and the released files under models/, on all test photos."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
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
from tests.runtime.conftest import needs_tflite
from train.network.calibration import expected_calibration_error
from train.network.novelty import unknown_rate
from train.run import open_run

FINE_TUNED = ROOT / "models" / "flowers_run"
COMPRESSED = ROOT / "models" / "flowers_compressed"
SMALL = ROOT / "models" / "flowers_small_run"
UNCOMPRESSED_MACS = 15_346_630_656
TEST_PHOTOS = 500


@dataclass(frozen=True)
class Bounds:
    """The limits that a release must keep."""

    run: Path
    folder: Path
    max_lost: int  # the most test photos that it labels wrongly beyond those of the uncompressed model
    max_bytes: int
    min_reduction: int
    max_named: float  # share of unrelated pictures
    min_agreement: float  # with the uncompressed model


RELEASES = [
    pytest.param(Bounds(COMPRESSED, RELEASED, 5, 3_000_000, 10, 0.2, 0.95), id="flowers"),
    pytest.param(Bounds(SMALL, ROOT / "models" / "flowers_small", 12, 1_000_000, 30, 0.25, 0.92), id="small"),
]


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


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("engine", "format"),
    [("litert", "tflite"), pytest.param("tflite", "tflite", marks=needs_tflite), ("onnx", "onnx")],
)
def test_the_released_files_lose_few_right_answers(
    engine: str, format: str, release: Bounds, flower_photos: Path
) -> None:
    uncompressed = open_run(FINE_TUNED, flower_photos)
    photos = uncompressed.dataset.split("test")
    # In a process without TensorFlow, as on a device: its symbols break tflite-runtime 2.14.
    command = [sys.executable, "-m", "runtime.classify", str(flower_photos / "test"), "--json"]
    file = release.folder / f"{release.folder.name}_int8.{format}"
    command += ["--model", str(file), "--engine", engine]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    labels = {answer["source"]: answer["label"] for answer in map(json.loads, done.stdout.splitlines())}
    correct = sum(labels[str(flower_photos / photo.path)] == photo.label for photo in photos)
    assert len(photos) == len(labels) == TEST_PHOTOS
    assert round(uncompressed.metrics["test"]["top1"] * TEST_PHOTOS) - correct <= release.max_lost


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_the_released_files_are_small_and_need_few_multiplications(format: str, release: Bounds) -> None:
    data = (release.folder / f"{release.folder.name}_int8.{format}").read_bytes()
    assert len(data) <= release.max_bytes
    assert count_macs(data, format) <= UNCOMPRESSED_MACS / release.min_reduction


@pytest.mark.parametrize("release", RELEASES)
def test_the_released_files_name_few_unrelated_pictures(release: Bounds) -> None:
    classifier = Classifier(release.folder / f"{release.folder.name}_int8.tflite", engine="litert")
    pictures = unrelated_pictures(classifier.model.contract.input_size)
    named = sum(classifier(picture).known is True for picture in pictures)
    assert len(pictures) == 108
    assert named <= release.max_named * len(pictures)


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


@pytest.mark.parametrize("release", RELEASES)
def test_every_file_of_a_release_passes_its_gate(
    release: Bounds, flower_photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "flowers"
    assert export([str(release.run), "--all", "--out", str(out), "--photos-root", str(flower_photos)]) == 0
    for row in parity_of_all_pairs(out, 8):
        assert int(row["n"]) == TEST_PHOTOS
        assert row["verdict"] == PASSED
        assert float(row["uncompressed_agreement"]) >= release.min_agreement
