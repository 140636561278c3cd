"""Compare methods that separate pictures of the classes from unknown pictures. Writes known.csv too.

    VGG_EDGE_PHOTOS=dir python -m benchmarks.known > benchmarks/known.md

Two tasks. Near: one flower is left out of the training photos and counts as unknown; the result is the mean
over the five flowers. Far: the sample pictures of scikit-image and scikit-learn, and crops of them, are
unknown. The metric is AUROC, the probability that a picture of a class scores higher than an unknown one. The
method was chosen on cross-validation folds of train/; test/ is used once, for its own columns.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from runtime.common.terminal import suppress_native_stderr
from runtime.preprocess.picture import read_picture
from train.cache import cache_folder
from train.data.find_photos import find_photos

with suppress_native_stderr():
    import keras  # noqa: F401

from train.features.devices import find_devices
from train.features.extraction import extract
from train.features.replica import Replica
from train.features.store import feature_layout
from train.network.novelty import BACKGROUND_WEIGHT, fit_novelty
from train.network.vgg import INPUT_SIZE, read_weights

FOLDS = 5
CROPS = 3  # of each sample picture
Score = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[Any]]


def unit(pooled: NDArray[Any]) -> NDArray[Any]:
    return pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-6)


def logits(train: NDArray[Any], labels: NDArray[Any], photos: NDArray[Any]) -> NDArray[Any]:
    head = LogisticRegression(C=300, max_iter=300).fit(unit(train), labels)
    return head.decision_function(unit(photos))


def energy(train: NDArray[Any], labels: NDArray[Any], photos: NDArray[Any]) -> NDArray[Any]:
    """Liu et al., "Energy-based Out-of-distribution Detection", 2020."""
    return np.logaddexp.reduce(logits(train, labels, photos), axis=1)


def maximum_probability(train: NDArray[Any], labels: NDArray[Any], photos: NDArray[Any]) -> NDArray[Any]:
    """Hendrycks & Gimpel, 2017."""
    scores = logits(train, labels, photos)
    return scores.max(1) - np.logaddexp.reduce(scores, axis=1)


def nearest(train: NDArray[Any], labels: NDArray[Any], photos: NDArray[Any]) -> NDArray[Any]:
    """Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022."""
    distances, _ = NearestNeighbors(n_neighbors=1).fit(unit(train)).kneighbors(unit(photos))
    return -distances[:, 0]


def mahalanobis(relative: float, roots: bool) -> Score:
    """`fit_novelty` takes the square roots of features; without `roots` they are squared before."""

    def score(train: NDArray[Any], labels: NDArray[Any], photos: NDArray[Any]) -> NDArray[Any]:
        power = 1 if roots else 2
        return fit_novelty(train**power, labels, train[:0], relative).score(photos**power)

    return score


RELEASED_METHOD = f"relative Mahalanobis, weight {BACKGROUND_WEIGHT}, square roots"
METHODS: dict[str, Score] = {
    "maximum probability": maximum_probability,
    "energy": energy,
    "nearest neighbour": nearest,
    "nearest neighbour, square roots": lambda train, labels, photos: nearest(
        np.sqrt(train), labels, np.sqrt(photos)
    ),
    "Mahalanobis": mahalanobis(0.0, roots=False),
    "relative Mahalanobis": mahalanobis(1.0, roots=False),
    "relative Mahalanobis, square roots": mahalanobis(1.0, roots=True),
    RELEASED_METHOD: mahalanobis(BACKGROUND_WEIGHT, roots=True),
    "relative Mahalanobis, weight 0.9, square roots": mahalanobis(0.9, roots=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    with redirect_stdout(sys.stderr):
        pooled, labels = pooled_flower_features(Path(os.environ["VGG_EDGE_PHOTOS"]))
    far = pooled_unrelated_features()
    rows = []
    for name, score in METHODS.items():
        near_test, far_test = leave_one_class_out(
            score, pooled["train"], labels["train"], pooled["test"], labels["test"], far
        )
        near_folds, far_folds = cross_validate(score, pooled["train"], labels["train"], far)
        rows.append(
            {
                "method": name,
                "near AUROC, folds of train": near_folds,
                "far AUROC, folds of train": far_folds,
                "near AUROC, test": near_test,
                "far AUROC, test": far_test,
            }
        )
    with arguments.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(labels['train']) // 2:,} training photos, {len(far)} unrelated pictures, frozen base\n")
    print("| " + " | ".join(rows[0]) + " |\n|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(v if isinstance(v, str) else f"{v:.3f}" for v in row.values()) + " |")


def leave_one_class_out(
    score: Score,
    train: NDArray[Any],
    labels: NDArray[Any],
    photos: NDArray[Any],
    truth: NDArray[Any],
    far: NDArray[Any],
) -> tuple[float, float]:
    """The near and the far AUROC, each the mean over the classes that are left out of the training photos."""
    near_aurocs, far_aurocs = [], []
    for left_out in np.unique(labels):
        kept = labels != left_out
        scores = score(train[kept], labels[kept], np.concatenate([photos, far]))
        near_aurocs.append(roc_auc_score(truth != left_out, scores[: len(photos)]))
        known = np.concatenate([scores[: len(photos)][truth != left_out], scores[len(photos) :]])
        far_aurocs.append(roc_auc_score(np.arange(len(known)) < len(known) - len(far), known))
    return float(np.mean(near_aurocs)), float(np.mean(far_aurocs))


def cross_validate(
    score: Score, train: NDArray[Any], labels: NDArray[Any], far: NDArray[Any]
) -> tuple[float, float]:
    """The same on folds of the training photos. Their second half mirrors the first half."""
    photos = len(labels) // 2
    fold = np.random.default_rng(0).integers(0, FOLDS, photos)
    aurocs = []
    for number in range(FOLDS):
        kept = np.tile(fold != number, 2)
        held_out = fold == number
        aurocs.append(
            leave_one_class_out(
                score, train[kept], labels[kept], train[:photos][held_out], labels[:photos][held_out], far
            )
        )
    near, far_mean = np.mean(aurocs, axis=0)
    return float(near), float(far_mean)


def pooled_flower_features(photos: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """By split, the pooled features of the frozen base [n, 512], and the labels [n]."""
    features = extract(find_photos(photos), read_weights(), cache_folder("features"), views=2)
    splits = {split: features.of(split) for split in ("train", "test")}
    pooled = {split: spatial_mean(x) for split, (x, _) in splits.items()}
    return pooled, {split: labels for split, (_, labels) in splits.items()}


def spatial_mean(features: Any) -> NDArray[Any]:
    parts = [
        features[start : start + 256].astype(np.float64).mean((1, 2))
        for start in range(0, len(features), 256)
    ]
    return np.concatenate(parts)


def pooled_unrelated_features() -> NDArray[Any]:
    weights = read_weights()
    replica = Replica(weights, "cpu:0", find_devices())
    rows = replica(unrelated_pictures(INPUT_SIZE))
    return feature_layout(weights, "block5_pool").features(rows).astype(np.float64).mean((1, 2))


def unrelated_pictures(size: tuple[int, int]) -> NDArray[np.uint8]:
    """The sample pictures of the two packages, without scikit-learn's flower, and three crops of each."""
    folder = Path(skimage.data.__file__).parent
    pictures = [read_picture(path, (512, 512)) for path in sorted(folder.glob("*.[pj][np]g"))]
    samples = load_sample_images()
    pictures += [
        np.asarray(Image.fromarray(image).resize((512, 512)))
        for name, image in zip(samples.filenames, samples.images, strict=True)
        if "flower" not in Path(name).name
    ]
    rng = np.random.default_rng(0)
    views = []
    for picture in pictures:
        boxes = [(0, 0, 512, 512)]
        for _ in range(CROPS):
            side = int(rng.integers(170, 360))
            left, top = (int(corner) for corner in rng.integers(0, 512 - side, 2))
            boxes.append((left, top, left + side, top + side))
        image = Image.fromarray(picture)
        views += [np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR, box)) for box in boxes]
    return np.stack(views)


if __name__ == "__main__":
    main()
