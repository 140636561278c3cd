"""Every file of the default recipe's run on the real photos holds its gate, in every engine."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from export.__main__ import main
from export.int8 import search as ladder
from export.parity.parity import MIN_PHOTOS, file_engine_pairs
from runtime.model_file.model import read_index

PHOTOS = 250  # of test/: every gate applies; eleven pairs of file and engine look at them
TO_CHOOSE_ON = 50  # of val, an int8 recipe: the gates judge whatever is chosen


def test_every_gate(flowers_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "VALIDATION_PHOTOS", TO_CHOOSE_ON)
    out = tmp_path / "flowers"
    assert main([str(flowers_run), "--all", "--photos", str(PHOTOS), "--out", str(out)]) == 0
    with (out / "parity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    made = [(file.format, file.precision) for file in read_index(out).files]
    assert len(made) == 7
    assert {((row["format"], row["precision"]), row["engine"].split()[0]) for row in rows} == set(
        file_engine_pairs(made)
    )
    for row in rows:
        assert int(row["n"]) >= MIN_PHOTOS
        assert row["verdict"] == "holds"
