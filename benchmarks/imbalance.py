"""What --class-weight balanced gives when one class is small: the pooled head, on photos held out of train/.

    VGG_EDGE_PHOTOS=dir python -m benchmarks.imbalance > benchmarks/imbalance.md

Each class in turn keeps a share of its photos in train and val, with three seeds. Temperature and best epoch
come from that val. The heads are measured on the same number of photos of each class (even), and with the
small class as small as in train (uneven). The benchmark does not read test/.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.markdown_table import table_head, table_row
from runtime.common.terminal import suppress_native_stderr
from train.cache import cache_folder
from train.data.find_photos import find_photos
from train.settings import RECIPES

with suppress_native_stderr():
    import keras
import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe_machine
from train.features.extraction import extract
from train.network.calibration import expected_calibration_error, temperature
from train.network.vgg import read_weights
from train.train_head import predict_in_batches, train_head

SEEDS = (0, 1, 2)
SHARES = (0.1, 0.3)
Split = tuple[NDArray[Any], NDArray[Any]]


def main() -> None:
    dataset = find_photos(Path(os.environ["VGG_EDGE_PHOTOS"]) / "train")
    with redirect_stdout(sys.stderr):
        features = extract(dataset, read_weights(), cache_folder("features"), views=2)
    pool = keras.Sequential(
        [keras.Input(features.of("val")[0].shape[1:]), keras.layers.GlobalAveragePooling2D()]
    )
    splits: dict[str, Split] = {}
    for split in ("train", "val", "test"):
        positions, labels = features.of(split)
        # The head takes the mean over positions first, so the mean as a single position gives the same.
        splits[split] = predict_in_batches(pool, positions)[:, None, None], labels
    classes = len(dataset.classes)
    print(
        f"{len(splits['train'][1]) // 2:,} photos in train before the cut, {len(splits['val'][1])} in val, "
        f"{len(splits['test'][1])} measured; mean over {classes} small classes and seeds {SEEDS}."
    )
    print(f"{describe_machine()}\n")
    print(
        table_head(
            *("small class keeps", "--class-weight", "its recall", "mean recall"),
            *("top-1, even", "ECE", "top-1, uneven", "ECE"),
        )
    )
    for share in SHARES:
        for class_weight in ("none", "balanced"):
            rows = [
                evaluate(
                    {
                        name: shrink_class(*split, small, share, 2 if name == "train" else 1)
                        for name, split in splits.items()
                    },
                    splits["test"],
                    small,
                    classes,
                    class_weight,
                    seed,
                )
                for small in range(classes)
                for seed in SEEDS
            ]
            recall, mean, top1, error, top1_natural, error_natural = np.mean(rows, axis=0)
            row = table_row(
                f"{share:.0%}",
                class_weight,
                f"{recall:.1%}",
                f"{mean:.1%}",
                f"{top1:.1%}",
                f"{error:.3f}",
                f"{top1_natural:.1%}",
                f"{error_natural:.3f}",
            )
            print(row, flush=True)


def shrink_class(features: NDArray[Any], labels: NDArray[Any], small: int, share: float, views: int) -> Split:
    """The split with the first `share` of the photos of class `small`, in all views."""
    photos = len(labels) // views
    of_small = np.flatnonzero(labels[:photos] == small)
    removed = of_small[max(1, round(share * len(of_small))) :]
    kept = np.setdiff1d(np.arange(photos), removed)
    rows = np.concatenate([kept + view * photos for view in range(views)])
    return features[rows], labels[rows]


def evaluate(
    splits: dict[str, Split], held_out: Split, small: int, classes: int, class_weight: str, seed: int
) -> tuple[float, ...]:
    settings = replace(RECIPES["pooled"], class_weight=class_weight, seed=seed)
    head = train_head(splits["train"], splits["val"], classes, settings)
    divisor = temperature(predict_probabilities(head, splits["val"]), splits["val"][1])
    figures: list[float] = []
    for features, labels in (held_out, splits["test"]):
        logs = np.log(np.maximum(predict_probabilities(head, (features, labels)), 1e-30)) / divisor
        probabilities = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
        right = probabilities.argmax(1) == labels
        if features is held_out[0]:
            recalls = [float(right[labels == label].mean()) for label in range(classes)]
            figures += [recalls[small], float(np.mean(recalls))]
        figures += [float(right.mean()), expected_calibration_error(probabilities, labels)]
    return tuple(figures)


def predict_probabilities(head: Any, split: Split) -> NDArray[Any]:
    return predict_in_batches(head.classifier, predict_in_batches(head.reducer, split[0]))


if __name__ == "__main__":
    main()
