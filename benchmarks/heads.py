"""Compare heads: each candidate trains on train and is measured on val, with three seeds.

    VGG_EDGE_PHOTOS=dir python -m benchmarks.heads > benchmarks/heads.md

The table also shows how sensitive a head is to 8-bit rounding: the largest change of a probability for each
photo, and the photos whose label stays the same. The base's weights are rounded to 8 bits per channel and its
activations to 8 bits per tensor, by minimum and maximum. The benchmark does not read test/.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.markdown_table import table_head, table_row
from runtime.common.terminal import suppress_native_stderr
from train.cache import cache_folder
from train.data.dataset import Dataset, Photo
from train.data.find_photos import find_photos
from train.settings import RECIPES, Settings

with suppress_native_stderr():
    import keras
import numpy as np
from numpy.typing import NDArray

from runtime.preprocess.picture import read_picture
from train.features.extraction import extract
from train.network.heads import HEADS
from train.network.vgg import CONVOLUTIONS, base_layers, load_weights, picture_input, read_weights
from train.train_head import predict_in_batches, train_head

SEEDS = (0, 1, 2)
Layers = list[keras.layers.Layer]
Split = tuple[NDArray[Any], NDArray[Any]]


def chain(*middle: Callable[[Settings], keras.layers.Layer]) -> Callable[[int, Settings], Layers]:
    """A head of the mean over positions, the layers `middle`, and one Dense layer."""
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


BASE = replace(
    RECIPES["pooled"],
    epochs=60,
    batch=64,
    learning_rate=1e-3,
    weight_decay=1e-2,
    label_smoothing=0.0,
    dropout=0.0,
)
DROP = replace(BASE, dropout=0.5)
UNIT = replace(BASE, learning_rate=1e-2)
CANDIDATES: dict[str, tuple[Callable[[int, Settings], Layers], Settings]] = {
    "dense": (chain(), BASE),
    "dense, not mirrored": (chain(), replace(BASE, views=1)),
    "dense, decay 1": (chain(), replace(BASE, weight_decay=1.0)),
    "dense, decay 3": (chain(), replace(BASE, weight_decay=3.0)),
    "dense, decay 10": (chain(), replace(BASE, weight_decay=10.0)),
    "dense, smoothing 0.1": (chain(), replace(BASE, label_smoothing=0.1)),
    "dense, dropout 0.5": (chain(dropout), DROP),
    "dense, dropout 0.5, decay 1": (chain(dropout), replace(DROP, weight_decay=1.0)),
    "dense, dropout 0.5, decay 3": (chain(dropout), replace(DROP, weight_decay=3.0)),
    "norm, dense": (chain(norm), BASE),
    "norm, dense, decay 3": (chain(norm), replace(BASE, weight_decay=3.0)),
    "norm, dense, dropout 0.5, decay 1": (chain(norm, dropout), replace(DROP, weight_decay=1.0)),
    "unit, dense": (chain(unit), UNIT),
    "unit, dense, lr 3e-2": (chain(unit), replace(UNIT, learning_rate=3e-2)),
    "unit, dense, lr 3e-2, decay 0.1": (chain(unit), replace(UNIT, learning_rate=3e-2, weight_decay=0.1)),
    "unit, dense, decay 0.1": (chain(unit), replace(UNIT, weight_decay=0.1)),
    "hidden 256, dropout 0.5, decay 1": (chain(hidden, dropout), replace(DROP, weight_decay=1.0)),
    "unit, hidden 256, dropout 0.5": (chain(unit, hidden, dropout), replace(UNIT, dropout=0.5)),
}


def main() -> None:
    dataset = find_photos(Path(os.environ["VGG_EDGE_PHOTOS"]))
    features = extract(dataset, read_weights(), cache_folder("features"), views=2)
    stored, labels = features.of("train")
    mirrored, val = stored[:], (features.of("val")[0][:], features.of("val")[1])
    rounded = rounded_features(dataset)
    names = sys.argv[1:] or list(CANDIDATES)
    print(f"{len(labels) // 2:,} photos in train, {len(val[1]):,} in val, mean of seeds {SEEDS}\n")
    print(table_head("head", "top-1 %", "loss", "8 bits: agree %", "p99 Δp", "max Δp"))
    for name in names:
        HEADS["candidate"], settings = CANDIDATES[name]
        count = len(labels) if settings.views > 1 else len(labels) // 2
        rows = [
            evaluate(
                (mirrored[:count], labels[:count]),
                val,
                rounded,
                replace(settings, recipe="candidate", seed=seed),
            )
            for seed in SEEDS
        ]
        top1, loss, agree, p99, worst = np.mean(rows, axis=0)
        accuracy = f"{100 * top1:.1f} ± {100 * np.std(rows, axis=0)[0]:.1f}"
        row = table_row(name, accuracy, f"{loss:.3f}", f"{100 * agree:.1f}", f"{p99:.3f}", f"{worst:.3f}")
        print(row, flush=True)


def evaluate(train: Split, val: Split, rounded: NDArray[Any], settings: Settings) -> tuple[float, ...]:
    """Top-1 and loss on val; with rounded features agreement, 99th percentile and maximum of |Δp|."""
    head = train_head(train, val, int(val[1].max()) + 1, settings)
    exact, rounded_output = (
        predict_in_batches(head.classifier, predict_in_batches(head.reducer, x)) for x in (val[0], rounded)
    )
    change = np.abs(exact - rounded_output).max(axis=1)
    right = np.maximum(exact[np.arange(len(val[1])), val[1]], 1e-30)
    return (
        float((exact.argmax(axis=1) == val[1]).mean()),
        float(-np.log(right).mean()),
        float((exact.argmax(axis=1) == rounded_output.argmax(axis=1)).mean()),
        float(np.percentile(change, 99)),
        float(change.max()),
    )


def rounded_features(dataset: Dataset) -> NDArray[Any]:
    """block5_pool of the photos of val from a base in 8 bits, with ranges from 64 training photos."""
    file = cache_folder("benchmarks") / f"rounded-{dataset.sha256[:16]}.npy"
    if file.exists():
        return np.load(file)
    weights = read_weights()
    image = picture_input()
    exact = keras.Model(image, base_layers(image))
    load_weights(exact, weights)
    names = ["imagenet_mean", *CONVOLUTIONS]
    ranges = keras.Model(image, [bounds(exact.get_layer(name).output) for name in names])
    sample = dataset.split("train")[:: len(dataset.split("train")) // 64]
    bounds_by_photo = [np.array(ranges.predict_on_batch(pixels(dataset, [photo]))) for photo in sample]
    low, high = np.min(bounds_by_photo, axis=0)[:, 0], np.max(bounds_by_photo, axis=0)[:, 1]

    x = image
    for layer in exact.layers[1:]:
        x = layer(x)
        if layer.name in names:
            index = names.index(layer.name)
            step = (high[index] - low[index]) / 255
            x = keras.ops.clip(keras.ops.round((x - low[index]) / step), 0, 255) * step + low[index]
    rounded = keras.Model(image, x)
    for name in CONVOLUTIONS:
        kernel, bias = rounded.get_layer(name).get_weights()
        step = np.abs(kernel).max(axis=(0, 1, 2)) / 127
        rounded.get_layer(name).set_weights([np.round(kernel / step) * step, bias])
    photos = dataset.split("val")
    parts = [
        rounded.predict_on_batch(pixels(dataset, photos[start : start + 16]))
        for start in range(0, len(photos), 16)
    ]
    np.save(file, np.concatenate(parts))
    return np.load(file)


def bounds(x: keras.KerasTensor) -> keras.KerasTensor:
    return keras.ops.stack([keras.ops.min(x), keras.ops.max(x)])


def pixels(dataset: Dataset, photos: Sequence[Photo]) -> NDArray[Any]:
    return np.stack([read_picture(dataset.root / photo.path) for photo in photos])


if __name__ == "__main__":
    main()
