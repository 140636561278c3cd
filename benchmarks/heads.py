"""Which head? Each candidate is trained on train and judged on validation photos, over three seeds.

    VGG_EDGE_PHOTOS=dir python benchmarks/heads.py > benchmarks/heads.md

Beside accuracy and loss stands how much a head amplifies small errors, for that is what int8 will do to it:
normal noise of 5 % of each channel's deviation is added to the pooled features, and the largest change of any
probability of a photo is taken. test/ is not read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from train.cache import cache_folder
from train.dataset import find_photos
from train.quiet import quiet_import
from train.settings import RECIPES, Settings

with quiet_import():
    import keras
import numpy as np
from numpy.typing import NDArray

from train.backbone import read_weights
from train.features import extract
from train.fit import fit
from train.head import HEADS

SEEDS = (0, 1, 2)
NOISE = 0.05
Layers = list[keras.layers.Layer]


def chain(*middle: Callable[[Settings], keras.layers.Layer]) -> Callable[[int, Settings], Layers]:
    """A head: the mean over positions, `middle`, one Dense layer."""
    return lambda classes, settings: [
        keras.layers.GlobalAveragePooling2D(name="pool"),
        *(make(settings) for make in middle),
        keras.layers.Dense(classes, name="logits"),
        keras.layers.Softmax(name="probabilities"),
    ]


def norm(_: Settings) -> keras.layers.Layer:
    return keras.layers.BatchNormalization(momentum=0.9, name="norm")


def unit(_: Settings) -> keras.layers.Layer:
    return keras.layers.UnitNormalization(name="unit")


def hidden(_: Settings) -> keras.layers.Layer:
    return keras.layers.Dense(256, activation="relu", name="hidden")


def dropout(settings: Settings) -> keras.layers.Layer:
    return keras.layers.Dropout(settings.dropout, seed=settings.seed, name="dropout")


BASE = replace(RECIPES["pooled"], epochs=60, batch=64, learning_rate=1e-3, weight_decay=1e-2)
CANDIDATES: dict[str, tuple[Callable[[int, Settings], Layers], Settings]] = {
    "dense": (chain(), BASE),
    "dense, not mirrored": (chain(), replace(BASE, mirror=False)),
    "dense, lr 3e-4": (chain(), replace(BASE, learning_rate=3e-4)),
    "dense, decay 1": (chain(), replace(BASE, weight_decay=1.0)),
    "dense, smoothing 0.1": (chain(), replace(BASE, label_smoothing=0.1)),
    "dense, dropout 0.5": (chain(dropout), replace(BASE, dropout=0.5)),
    "norm, dense": (chain(norm), BASE),
    "norm, dense, decay 1": (chain(norm), replace(BASE, weight_decay=1.0)),
    "norm, dense, dropout 0.5": (chain(norm, dropout), replace(BASE, dropout=0.5)),
    "norm, dense, smoothing 0.1": (chain(norm), replace(BASE, label_smoothing=0.1)),
    "norm, dense, smoothing 0.1, dropout 0.5": (
        chain(norm, dropout),
        replace(BASE, label_smoothing=0.1, dropout=0.5),
    ),
    "unit, dense, lr 1e-2": (chain(unit), replace(BASE, learning_rate=1e-2)),
    "hidden 256, dropout 0.5": (chain(hidden, dropout), replace(BASE, dropout=0.5)),
    "norm, hidden 256, dropout 0.5": (chain(norm, hidden, dropout), replace(BASE, dropout=0.5)),
    "norm, hidden 256, dropout 0.5, smoothing 0.1": (
        chain(norm, hidden, dropout),
        replace(BASE, dropout=0.5, label_smoothing=0.1),
    ),
}


def main() -> None:
    dataset = find_photos(Path(os.environ["VGG_EDGE_PHOTOS"]))
    features = extract(dataset, read_weights(), cache_folder("features"), mirror=True)
    mirrored, labels = features.of("train")
    val = features.of("val")
    wanted = sys.argv[1:] or list(CANDIDATES)
    print(f"{len(labels) // 2:,} photos to train on, {len(val[1]):,} to validate on, seeds {SEEDS}\n")
    print("| head | top-1 % | loss | p99 Δp | max Δp |\n|---|---|---|---|---|")
    for name in wanted:
        HEADS["candidate"], settings = CANDIDATES[name]
        count = len(labels) if settings.mirror else len(labels) // 2
        rows = [
            measure((mirrored[:count], labels[:count]), val, replace(settings, recipe="candidate", seed=seed))
            for seed in SEEDS
        ]
        top1, loss, p99, worst = np.mean(rows, axis=0)
        spread = np.std(rows, axis=0)[0]
        print(
            f"| {name} | {100 * top1:.1f} ± {100 * spread:.1f} | {loss:.3f} | {p99:.3f} | {worst:.3f} |",
            flush=True,
        )


def measure(
    train: tuple[NDArray[Any], NDArray[Any]], val: tuple[NDArray[Any], NDArray[Any]], settings: Settings
) -> tuple[float, float, float, float]:
    """Top-1, loss, and the 99th percentile and the largest of the changes that noise makes, all on
    validation.
    """
    fitted = fit(train, val, int(val[1].max()) + 1, settings)
    pool, *rest = fitted.layers
    pooled = keras.ops.convert_to_numpy(pool(val[0].astype(np.float32)))
    head = keras.Sequential([keras.Input(pooled.shape[1:]), *rest])
    clean = head.predict(pooled, verbose=0)
    rng = np.random.default_rng(0)
    changes = []
    for _ in range(10):
        noise = rng.normal(0, NOISE, pooled.shape) * pooled.std(axis=0)
        changes.append(
            np.abs(head.predict((pooled + noise).astype(np.float32), verbose=0) - clean).max(axis=1)
        )
    right = clean[np.arange(len(val[1])), val[1]]
    return (
        float((clean.argmax(axis=1) == val[1]).mean()),
        float(-np.log(np.maximum(right, 1e-30)).mean()),
        float(np.percentile(changes, 99)),
        float(np.max(changes)),
    )


if __name__ == "__main__":
    main()
