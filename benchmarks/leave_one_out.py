"""How well the released recipe recognizes flowers that it never saw: near and far AUROC of the int8 file.

    python -m benchmarks.leave_one_out PHOTOS WORK > benchmarks/leave_one_out.md

PHOTOS holds train/ and test/ with class folders. For each class, a model is trained, fine-tuned and
compressed on the photos of the other classes alone, with the default negatives, and exported as int8 TFLite.
AUROC is the probability that a test photo of these classes gets a higher `known` than a test photo of the
class that was left out (near), or than a sample picture of scikit-image and scikit-learn (far). Training and
compression are shorter than those of the released model. WORK keeps the runs: the same command continues
after an interruption. Takes 2 hours on 2 cores. Writes leave_one_out.csv too.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.complete_folder import complete_folder, complete_run
from benchmarks.known import unrelated_pictures
from benchmarks.machine import describe_machine
from benchmarks.markdown_table import table_head, table_row
from export.__main__ import main as export
from runtime import Classifier
from runtime.preprocess.picture import read_picture
from train.__main__ import main as train
from train.compress.__main__ import main as compress

Row = tuple[str, float, float, float, float, float]
TRAIN_FLAGS = ("--fine-tune", "block5", "--fine-tune-epochs", "2")  # the released model: 6 epochs
# The released model: 40, 8, 600.
COMPRESS_FLAGS = ("--epochs", "3", "--views", "3", "--reconstruction-photos", "200")
COLUMNS = ("left out", "top-1 of the others", "near AUROC", "far AUROC", "left out named", "others rejected")


def main() -> int:
    """Prints the table and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--left-out", action="append", help="a class to leave out (default: each one)")
    arguments = parser.parse_args()
    rows = []
    classes = arguments.left_out or sorted(folder.name for folder in (arguments.photos / "train").iterdir())
    for label in classes:
        with redirect_stdout(sys.stderr):
            model = int8_model(arguments.photos, arguments.work / label, label)
        rows.append(measure(model, arguments.photos / "test", label))
        print(f"{label}: near AUROC {rows[-1][2]:.3f}, far AUROC {rows[-1][3]:.3f}", file=sys.stderr)
    rows.append(mean_row(rows))
    with Path(__file__).with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])
    print(f"Measured on {describe_machine()}.")
    print(f"Training: {' '.join(TRAIN_FLAGS)}. Compression: {' '.join(COMPRESS_FLAGS)}.\n")
    print(table_head(*COLUMNS))
    for name, *values in rows:
        print(table_row(name, *(f"{value:.3f}" for value in values)))
    return 0


def int8_model(photos: Path, work: Path, label: str) -> Path:
    """The folder of the int8 model without a class; made in `work` unless it is there."""
    if (work / "model" / "model.json").exists():  # then the run may be gone
        return work / "model"
    others = copy_others(photos, work / "photos", label)
    run = complete_run(work / "run", train, str(others), *TRAIN_FLAGS)
    compressed = complete_run(work / "compressed", compress, str(run), *COMPRESS_FLAGS)
    return export_int8(compressed, work / "model")


def export_int8(run: Path, model: Path) -> Path:
    """The folder of the run's int8 model; an existing one is kept."""
    if not (model / "model.json").exists() and (
        code := export([str(run), "--int8", "--engines", "litert", "--out", str(model)])
    ):
        sys.exit(code)
    return model


def copy_others(photos: Path, folder: Path, label: str) -> Path:
    """A copy of the photos without one class."""
    others = shutil.ignore_patterns(label)
    return complete_folder(folder, lambda partial: shutil.copytree(photos, partial, ignore=others))


def measure(model: Path, test: Path, label: str) -> Row:
    """A row of the table."""
    classifier = Classifier(model, engine="litert")
    size, labels = classifier.model.contract.input_size, classifier.model.contract.labels
    correct, known, new = [], [], []
    for path in sorted(test.glob("*/*")):
        output = classifier.infer(read_picture(path, size))
        assert output.known is not None
        if path.parent.name == label:
            new.append(output.known)
        else:
            known.append(output.known)
            correct.append(labels[int(output.probabilities.argmax())] == path.parent.name)
    far = [classifier.infer(picture).known for picture in unrelated_pictures(size)]
    threshold = classifier.model.contract.thresholds["known"]
    return (
        label,
        float(np.mean(correct)),
        auroc(known, new),
        auroc(known, np.array(far, np.float64)),
        float(np.mean(np.array(new) >= threshold)),
        float(np.mean(np.array(known) < threshold)),
    )


def auroc(known: Sequence[float], other: Sequence[float] | NDArray[np.float64]) -> float:
    scores = np.concatenate([known, other])
    return float(roc_auc_score(np.arange(len(scores)) < len(known), scores))


def mean_row(rows: Sequence[Row]) -> Row:
    correct, near, far, named, rejected = np.mean([row[1:] for row in rows], axis=0).tolist()
    return ("mean", correct, near, far, named, rejected)


if __name__ == "__main__":
    sys.exit(main())
