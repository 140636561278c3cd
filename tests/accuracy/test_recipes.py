"""Accuracy, unknown pictures and parity of the two recipes on test/, on which no setting was chosen.

The tests share a file, and so a process: the first one extracts the features of all photos.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from export.__main__ import main as export
from export.int8 import search
from export.parity.gates import GATES, PASSED, TOO_FEW_PHOTOS
from tests.accuracy.parity_rows import parity_of_all_pairs
from train.__main__ import main as train
from train.run import open_run

# Every photo costs 4 seconds of one core in the pairs of file and engine. The gates on rates need 250
# photos: test_released.py judges all pairs of the compressed run on all 500.
PARITY_PHOTOS = 50  # of test/
SEARCH_PHOTOS = 50  # of val, to choose an int8 recipe
CALIBRATION_PHOTOS = 24  # of train/


@pytest.fixture(scope="session")
def flowers_run(flower_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the default recipe."""
    out = tmp_path_factory.mktemp("runs") / "pooled"
    assert train([str(flower_photos), "--out", str(out)]) == 0
    return out


def test_the_default_recipe_reaches_87_percent(flowers_run: Path) -> None:
    test = open_run(flowers_run).metrics["test"]
    assert test["n"] >= 250
    assert test["top1"] >= 0.87


def test_the_article_recipe_reaches_82_percent(
    flowers_run: Path, flower_photos: Path, tmp_path: Path
) -> None:
    """From the features that the default recipe left in the cache."""
    assert train([str(flower_photos), "--recipe", "article", "--out", str(tmp_path / "article")]) == 0
    test = open_run(tmp_path / "article").metrics["test"]
    assert test["n"] >= 250
    assert test["top1"] >= 0.82


def test_the_default_recipe_rejects_default_negatives_and_few_flowers(flowers_run: Path) -> None:
    test = open_run(flowers_run).metrics["test"]
    assert test["default_negatives"] >= 100
    assert test["default_named"] <= 0.05
    assert test["unknown"] <= 0.05


def test_every_exported_file_passes_its_gate_in_every_engine(
    flowers_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "VALIDATION_PHOTOS", SEARCH_PHOTOS)
    monkeypatch.setattr(search, "CALIBRATION_PHOTOS", CALIBRATION_PHOTOS)
    out = tmp_path / "flowers"
    # Not the full-int8 file: one other answer would fail its gate, and test_released.py has all test photos.
    precisions = ["--float16", "--dynamic", "--int8"]
    assert export([str(flowers_run), *precisions, "--photos", str(PARITY_PHOTOS), "--out", str(out)]) == 0
    for row in parity_of_all_pairs(out, 7):
        assert int(row["n"]) == PARITY_PHOTOS
        gate = GATES[row["precision"]]
        assert row["verdict"] == (TOO_FEW_PHOTOS if gate.needs_many_photos else PASSED)
        # The bounds that `export` applies from 250 photos on.
        assert gate.agreement is None or float(row["agreement"]) >= gate.agreement
        assert gate.p99_dp is None or float(row["p99_dp"]) <= gate.p99_dp
