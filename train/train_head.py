"""Train a head on features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from train.data.class_weights import class_weights
from train.network.heads import HEADS
from train.settings import Settings
from train.trainer import Array, Batches, Row, Tell, fingerprint_of, train_epochs


@dataclass(frozen=True)
class TrainedHead:
    """Trained layers with the weights of the best epoch, each epoch's figures, and whether Ctrl-C cut it
    short.

    `reduce` takes features through the blocks, if any lie above them, and the head's first layer; `rest`
    takes what that gives to probabilities.
    """

    blocks: Sequence[keras.layers.Layer]
    head: Sequence[keras.layers.Layer]
    reduce: keras.Model
    rest: keras.Model
    history: Sequence[Row]
    stopped: bool


def train_head(
    train: tuple[Array, NDArray[Any]],
    val: tuple[Array, NDArray[Any]],
    classes: int,
    settings: Settings,
    blocks: Sequence[keras.layers.Layer] = (),
    kept: Path | None = None,
    tell: Tell = lambda stage, row: None,
) -> TrainedHead:
    """Train the recipe's head on features [N, height, width, channels] and class indices [N].

    `blocks` are layers of the base that lie between the features and the head: here they stay as they are.
    The weights kept are those of the epoch with the lowest loss on `val` (on `train` when `val` is empty).
    `kept` is the folder that an interrupted run goes on from, `tell` is given every epoch: train/epochs.py.
    """
    deterministic(settings.seed)
    head = HEADS[settings.recipe](classes, settings)
    # The first layer has no weights: what it gives for a photo is the same in every epoch, so it runs once.
    reduce = keras.Sequential([keras.Input(train[0].shape[1:]), *blocks, head[0]])
    train_x, val_x = predict(reduce, train[0]), predict(reduce, val[0])
    model = keras.Sequential([keras.Input(train_x.shape[1:]), *head[1:]])
    _begin(head[1:], settings.seed)
    rows = len(train_x)
    batches = Batches(
        train_x,
        train[1],
        classes,
        settings.batch,
        lambda epoch: np.random.default_rng([settings.seed, epoch]).permutation(rows),
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(settings.learning_rate, settings.epochs * len(batches)),
            weight_decay=settings.weight_decay,
        ),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=settings.label_smoothing),
        metrics=["accuracy"],
    )
    history, stopped = train_epochs(
        model,
        batches,
        Batches(val_x, val[1], classes),
        settings.epochs,
        "head",
        kept,
        fingerprint_of(settings, train, val) if kept else "",
        class_weights(train[1], classes, settings.class_weight),
        tell,
    )
    return TrainedHead(blocks, head, reduce, model, history, stopped)


def _begin(layers: Sequence[keras.layers.Layer], seed: int) -> None:
    """First weights drawn by numpy, for each backend draws its own: uniform within the bounds of Glorot &
    Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """
    chance = np.random.default_rng(seed)
    for layer in layers:
        if isinstance(layer, keras.layers.Dense):
            bound = np.sqrt(6 / sum(layer.kernel.shape))
            layer.kernel.assign(chance.uniform(-bound, bound, layer.kernel.shape).astype(np.float32))


def predict(model: keras.Model, features: Array) -> NDArray[np.float32]:
    """What the model gives for features, float32 [N, …], a bounded part at a time."""
    parts = [
        np.asarray(
            keras.ops.convert_to_numpy(
                model.predict_on_batch(features[start : start + 128].astype(np.float32))
            ),
            np.float32,
        )
        for start in range(0, len(features), 128)
    ]
    return np.concatenate(parts) if parts else np.empty((0, *model.output_shape[1:]), np.float32)


def deterministic(seed: int) -> None:
    """Same seed, same data, same machine, CPU: the same numbers from here on."""
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_op_determinism()
