"""Pictures of no class are told from flowers: the bars of benchmarks/known.py, on test/."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_auroc(flower_photos: Path, tmp_path: Path) -> None:
    found = tmp_path / "known.csv"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.known", "--csv", found],
        cwd=ROOT,
        env={**os.environ, "VGG_EDGE_PHOTOS": str(flower_photos)},
        check=True,
    )
    with found.open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    ours = rows["0.95 of the relative one, square roots"]
    assert float(ours["near, test"]) >= 0.78
    assert float(ours["far, test"]) >= 0.95
    plain = rows["maximum probability"]
    assert float(ours["near, test"]) > float(plain["near, test"]) + 0.03
