"""Should a small class be weighted? The pooled head, with one class cut down, judged on photos held out of
train/.

    VGG_EDGE_PHOTOS=dir python -m benchmarks.imbalance > benchmarks/imbalance.md

Each class in turn keeps a share of its photos in the training and the validation split, as in a folder that
has few of them; three seeds each. Temperature and best epoch come from that validation split. Measured on as
many photos of each class (even), and on as few of the small one as were trained on (uneven). test/ is not
read.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.common.terminal import suppress_native_stderr
from train.cache import cache_folder
from train.data.dataset import find_photos
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
        found, labels = features.of(split)
        # One position is its own mean: the head trains on these as on the whole [7, 7, 512].
        splits[split] = predict_in_batches(pool, found)[:, None, None], labels
    classes = len(dataset.classes)
    print(
        f"{len(splits['train'][1]) // 2:,} photos to train on before the cut, {len(splits['val'][1])} to "
        f"validate on, {len(splits['test'][1])} measured; mean of {classes} classes cut, seeds {SEEDS}."
    )
    print(f"{describe_machine()}\n")
    print(
        "| small class keeps | --class-weight | recall of it | mean recall | top-1, even | calibration error "
        "| top-1, uneven | calibration error |\n|---|---|---|---|---|---|---|---|"
    )
    for share in SHARES:
        for how in ("none", "balanced"):
            rows = [
                measure(
                    {
                        name: less(*of, small, share, 2 if name == "train" else 1)
                        for name, of in splits.items()
                    },
                    splits["test"],
                    small,
                    classes,
                    how,
                    seed,
                )
                for small in range(classes)
                for seed in SEEDS
            ]
            recall, mean, top1, error, top1_natural, error_natural = np.mean(rows, axis=0)
            print(
                f"| {share:.0%} | {how} | {recall:.1%} | {mean:.1%} | {top1:.1%} | {error:.3f} | "
                f"{top1_natural:.1%} | {error_natural:.3f} |",
                flush=True,
            )


def less(features: NDArray[Any], labels: NDArray[Any], small: int, share: float, views: int) -> Split:
    """The split with that share of the class `small`: its first photos, in all their views."""
    photos = len(labels) // views
    of_small = np.flatnonzero(labels[:photos] == small)
    gone = of_small[max(1, round(share * len(of_small))) :]
    kept = np.setdiff1d(np.arange(photos), gone)
    rows = np.concatenate([kept + view * photos for view in range(views)])
    return features[rows], labels[rows]


def measure(
    splits: dict[str, Split], held_out: Split, small: int, classes: int, how: str, seed: int
) -> tuple[float, ...]:
    settings = replace(RECIPES["pooled"], class_weight=how, seed=seed)
    head = train_head(splits["train"], splits["val"], classes, settings)
    divisor = temperature(said(head, splits["val"]), splits["val"][1])
    figures: list[float] = []
    for features, labels in (held_out, splits["test"]):
        logs = np.log(np.maximum(said(head, (features, labels)), 1e-30)) / divisor
        probabilities = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
        right = probabilities.argmax(1) == labels
        if features is held_out[0]:
            recalls = [float(right[labels == label].mean()) for label in range(classes)]
            figures += [recalls[small], float(np.mean(recalls))]
        figures += [float(right.mean()), expected_calibration_error(probabilities, labels)]
    return tuple(figures)


def said(head: Any, split: Split) -> NDArray[Any]:
    return predict_in_batches(head.classifier, predict_in_batches(head.reducer, split[0]))


if __name__ == "__main__":
    main()
