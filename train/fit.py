"""Train a head on features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from train.features import Stored
from train.head import HEADS
from train.progress import Progress
from train.settings import Settings

Array = Stored | NDArray[Any]


@dataclass(frozen=True)
class Fitted:
    """Trained layers with the weights of the best epoch, each epoch's figures, and whether Ctrl-C cut it
    short.

    `reduce` takes features through the blocks, if any lie above them, and the head's first layer; `rest`
    takes what that gives to probabilities.
    """

    blocks: Sequence[keras.layers.Layer]
    head: Sequence[keras.layers.Layer]
    reduce: keras.Model
    rest: keras.Model
    history: Sequence[Mapping[str, float]]
    stopped: bool


def fit(
    train: tuple[Array, NDArray[Any]],
    val: tuple[Array, NDArray[Any]],
    classes: int,
    settings: Settings,
    blocks: Sequence[keras.layers.Layer] = (),
) -> Fitted:
    """Train the recipe's head on features [N, height, width, channels] and class indices [N].

    `blocks` are layers of the base that lie between the features and the head: here they stay as they are.
    The weights kept are those of the epoch with the lowest loss on `val` (on `train` when `val` is empty).
    """
    deterministic(settings.seed)
    head = HEADS[settings.recipe](classes, settings)
    # The first layer has no weights: what it gives for a photo is the same in every epoch, so it runs once.
    reduce = keras.Sequential([keras.Input(train[0].shape[1:]), *blocks, head[0]])
    train_x, val_x = predict(reduce, train[0]), predict(reduce, val[0])
    model = keras.Sequential([keras.Input(train_x.shape[1:]), *head[1:]])
    steps = settings.epochs * -(-len(train_x) // settings.batch)
    model.compile(
        optimizer=keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps),
            weight_decay=settings.weight_decay,
        ),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=settings.label_smoothing),
        metrics=["accuracy"],
    )
    best = keras.callbacks.EarlyStopping(
        monitor="val_loss" if len(val_x) else "loss", patience=settings.epochs, restore_best_weights=True
    )
    epochs = EpochLog(settings.epochs)
    stopped = False
    try:
        model.fit(
            train_x,
            keras.utils.to_categorical(train[1], classes),
            validation_data=(val_x, keras.utils.to_categorical(val[1], classes)) if len(val_x) else None,
            batch_size=settings.batch,
            epochs=settings.epochs,
            callbacks=[best, epochs],
            verbose=0,
        )
    except KeyboardInterrupt:
        stopped = True
        if best.best_weights is not None:
            model.set_weights(best.best_weights)
    finally:
        epochs.progress.__exit__(None, None, None)
    return Fitted(blocks, head, reduce, model, epochs.rows, stopped)


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


class EpochLog(keras.callbacks.Callback):  # type: ignore[misc]
    """Each epoch's figures, shown as they come."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.rows: list[Mapping[str, float]] = []
        self.progress = Progress("head", epochs, "epochs")

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        row = {name: float(value) for name, value in (logs or {}).items()}
        self.rows.append({"epoch": epoch + 1, **row})
        self.progress.step(1, ", ".join(f"{name} {value:.3f}" for name, value in row.items()))
