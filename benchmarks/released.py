"""What the released flower model and the uncompressed one, both kept in models/, give beyond parity.

    VGG_EDGE_PHOTOS=dir python -m benchmarks.released > benchmarks/released.md

Top-1 with and without the test photos that are near-duplicates of photos learned from or chosen on, and how
well each tells what is no flower, on the pictures of benchmarks/known.py: the area under the ROC curve, and
the shares on the wrong side of the threshold. The int8 row is the released TFLite file, for top-1 alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.known import unrelated_pictures
from export.photos import read_photos
from export.serving_model import named_outputs
from runtime import Classifier
from train.data.dataset import Dataset
from train.data.near_duplicates import check_near_duplicates
from train.run import open_run

MODELS = Path(__file__).parents[1] / "models"


def main() -> int:
    photos = Path(os.environ["VGG_EDGE_PHOTOS"])
    dataset = open_run(MODELS / "flowers_run", photos).dataset
    before = seen_before(dataset)
    apart = np.array([photo.path not in before for photo in dataset.split("test")])
    print("| model | top-1 | without near-duplicates | n | far AUROC | others named | flowers unknown |")
    print("|---|---|---|---|---|---|---|")
    for name in ("flowers_run", "flowers_compressed"):
        run = open_run(MODELS / name, photos)
        model = run.load_model()
        size = model.inputs[0].shape[1:3]
        test, others = read_photos(run.dataset, "test", size), unrelated_pictures(size)
        names = list(named_outputs(model))
        said, none = (
            dict(zip(names, model.predict(pixels, batch_size=16, verbose=0), strict=True))
            for pixels in (test.pixels, others)
        )
        right = said["probabilities"].argmax(1) == test.truth
        flowers, rest = said["known"][:, 0], none["known"][:, 0]
        area = roc_auc_score(np.arange(len(flowers) + len(rest)) < len(flowers), [*flowers, *rest])
        threshold = run.thresholds["known"]
        wrong = f"{(rest >= threshold).mean():.1%} of {len(rest)} | {(flowers < threshold).mean():.1%}"
        shares = f"{right.mean():.1%} | {right[apart].mean():.1%} | {apart.sum()}"
        print(f"| {name}, float32 | {shares} | {area:.3f} | {wrong} |")
    classify = Classifier(MODELS / "flowers" / "flowers_int8.tflite")
    test_photos = dataset.split("test")
    right = np.array([classify(dataset.root / one.path).label == one.label for one in test_photos])
    print(f"| flowers, int8 | {right.mean():.1%} | {right[apart].mean():.1%} | {apart.sum()} | | | |")
    return 0


def seen_before(dataset: Dataset) -> set[str]:
    """Paths of test photos that show a picture of train or val."""
    with tempfile.TemporaryDirectory() as cache, redirect_stdout(sys.stderr):
        _, pairs = check_near_duplicates(dataset, Path(cache), "report")
    both = [(pair.photo, pair.other) for pair in pairs]
    both += [(other, photo) for photo, other in both]
    return {photo.path for photo, other in both if photo.split == "test" and other.split != "test"}


if __name__ == "__main__":
    sys.exit(main())
