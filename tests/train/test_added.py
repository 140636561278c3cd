"""Training and compression with --add, from folders to run folders."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.preprocess.picture import read_picture
from tests.conftest import QUICK
from train.__main__ import main
from train.compress.__main__ import main as compress
from train.run import Run, open_run


@pytest.fixture(scope="module")
def taught(synthetic_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders as a device exports them: photos of a known class, of a new class and of none."""
    root = tmp_path_factory.mktemp("device") / "taught"
    rng = np.random.default_rng(5)
    for label in ("roses", "stripes", "none"):
        (root / label).mkdir(parents=True)
    shutil.copy(synthetic_photos / "roses" / "roses-000.jpg", root / "roses" / "known.jpg")
    for number in range(4):
        rose = Image.open(synthetic_photos / "roses" / f"roses-00{number}.jpg").rotate(90)
        rose.save(root / "roses" / f"{number}.jpg")
        stripes = Image.fromarray(rng.integers(0, 256, (1, 9, 3), np.uint8)).resize((96, 96))
        stripes.save(root / "stripes" / f"{number}.jpg")
        noise = Image.fromarray(rng.integers(0, 256, (96, 96, 3), np.uint8))
        noise.save(root / "none" / f"{number}.jpg")
    return root


def check(run: Run, printed: str, added: Path) -> None:
    """What was printed and written about the added photos is what the saved model computes from the files."""
    model = run.load_model()
    with (run.path / "added_photos.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]) for row in rows] == [
        run.dataset.root / photo.path for photo in run.dataset.added
    ]
    assert {Path(row["path"]).parents[1] for row in rows} == {added}
    pixels = np.stack([read_picture(Path(row["path"]), model.input_shape[1:3]) for row in rows])
    probabilities, known, _ = map(np.asarray, model.predict_on_batch(pixels))
    right = 0
    for row, probability, score in zip(rows, probabilities, known[:, 0], strict=True):
        rejected = score < run.thresholds["known"]
        assert row["answer"] == ("unknown" if rejected else run.classes[probability.argmax()])
        assert float(row["probability"]) == pytest.approx(probability.max(), abs=5e-3)
        right += int(row["right"])
        assert int(row["right"]) == (row["answer"] == {"none": "unknown"}.get(row["label"], row["label"]))
    assert f"added: {right} of {len(rows)} photos of --add get the right answer: roses " in printed
    report = (run.path / "report.html").read_text()
    text = " ".join(re.sub("<[^>]+>", "", report).split())
    assert f"and now gives {right} of them the right answer" in text
    assert str(added.parent) not in report


@pytest.mark.slow
def test_added_photos_are_learned_and_their_answers_reported(
    synthetic_photos: Path,
    small_weights: Path,
    taught: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "more"
    flags = ["--weights", str(small_weights), "--views", "2", "--epochs", "20", "--learning-rate", "0.1"]
    assert main([str(synthetic_photos), "--add", str(taught), "--limit", "8", "--out", str(out), *flags]) == 0
    printed = capsys.readouterr().out
    assert (
        f"added: {taught}: 12 photos to train: roses 4, stripes 4 (new class), none 4; 1 file left" in printed
    )
    run = open_run(out)
    assert "stripes" in run.classes and {photo.split for photo in run.dataset.added} == {"train"}
    check(run, printed, taught)
    suspects = (out / "suspect_labels.csv").read_text().splitlines()
    assert suspects[0] == "path,label,other,label_probability,other_probability,suspect"
    # The folder has moved before compression.
    moved = Path(shutil.copytree(taught, tmp_path / "elsewhere" / "taught"))
    small = tmp_path / "small"
    assert compress([str(out), "--add", str(moved), "--out", str(small), *QUICK]) == 0
    check(open_run(small), capsys.readouterr().out, moved)
