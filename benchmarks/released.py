"""Measure the released flower models and the uncompressed model (all in models/) beyond parity.

    VGG_EDGE_PHOTOS=dir python -m benchmarks.released > benchmarks/released.md

The table has top-1 with and without the test photos that are near-duplicates of train or val photos, and the
rejection of pictures without flowers (those of benchmarks/known.py): the area under the ROC curve, and the
shares on the wrong side of the threshold. The int8 rows are the released TFLite files.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.known import unrelated_pictures
from benchmarks.markdown_table import table_head
from export.photos import read_photos
from export.serving_model import named_outputs
from runtime import Classifier
from train.data.dataset import Dataset
from train.data.near_duplicates import check_near_duplicates
from train.run import open_run

MODELS = Path(__file__).parents[1] / "models"


def main() -> int:
    """Prints the Markdown table."""
    root = Path(os.environ["VGG_EDGE_PHOTOS"])
    dataset = open_run(MODELS / "flowers_run", root).dataset
    duplicates = near_duplicates_of_training(dataset)
    distinct = np.array([photo.path not in duplicates for photo in dataset.split("test")])
    print(
        table_head(
            *("model", "top-1", "without near-duplicates", "n"),
            *("far AUROC", "others named", "flowers unknown"),
        )
    )
    for name in ("flowers_run", "flowers_compressed", "flowers_small_run"):
        print(float32_row(name, root, distinct))
    for name in ("flowers", "flowers_small"):
        print(int8_row(name, dataset, distinct))
    return 0


def float32_row(name: str, root: Path, distinct: NDArray[np.bool_]) -> str:
    """The row of a float32 Keras model. `distinct` marks the test photos without near-duplicates."""
    run = open_run(MODELS / name, root)
    model = run.load_model()
    size = model.inputs[0].shape[1:3]
    test, others = read_photos(run.dataset, "test", size), unrelated_pictures(size)
    names = list(named_outputs(model))
    on_test, on_others = (
        dict(zip(names, model.predict(pixels, batch_size=16, verbose=0), strict=True))
        for pixels in (test.pixels, others)
    )
    right = on_test["probabilities"].argmax(1) == test.truth
    flowers, rest = on_test["known"][:, 0], on_others["known"][:, 0]
    area = roc_auc_score(np.arange(len(flowers) + len(rest)) < len(flowers), [*flowers, *rest])
    threshold = run.thresholds["known"]
    wrong = f"{(rest >= threshold).mean():.1%} of {len(rest)} | {(flowers < threshold).mean():.1%}"
    shares = f"{right.mean():.1%} | {right[distinct].mean():.1%} | {distinct.sum()}"
    return f"| {name}, float32 | {shares} | {area:.3f} | {wrong} |"


def int8_row(name: str, dataset: Dataset, distinct: NDArray[np.bool_]) -> str:
    """The row of a released TFLite file."""
    classify = Classifier(MODELS / name / f"{name}_int8.tflite")
    photos = dataset.split("test")
    answers = [classify(dataset.root / photo.path) for photo in photos]
    right = np.array([answer.label == photo.label for answer, photo in zip(answers, photos, strict=True)])
    unknown = np.mean([answer.known is False for answer in answers])
    others = unrelated_pictures(classify.model.contract.input_size)
    named = np.mean([classify(picture).known is True for picture in others])
    return (
        f"| {name}, int8 | {right.mean():.1%} | {right[distinct].mean():.1%} | {distinct.sum()} | "
        f"| {named:.1%} of {len(others)} | {unknown:.1%} |"
    )


def near_duplicates_of_training(dataset: Dataset) -> set[str]:
    """The paths of test photos that are near-duplicates of train or val photos."""
    with tempfile.TemporaryDirectory() as cache, redirect_stdout(sys.stderr):
        _, pairs = check_near_duplicates(dataset, Path(cache), "report")
    both = [(pair.photo, pair.other) for pair in pairs or ()]
    both += [(other, photo) for photo, other in both]
    return {photo.path for photo, other in both if photo.split == "test" and other.split != "test"}


if __name__ == "__main__":
    sys.exit(main())
