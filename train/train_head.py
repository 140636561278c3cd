"""Train a head on features of the frozen base; train/trainer.py holds the loop and its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from train.data.class_weights import NEGATIVE, class_weights
from train.network.heads import HEADS
from train.settings import Settings
from train.trainer import (
    EVALUATION_BATCH,
    Batches,
    EpochCallback,
    EpochMetrics,
    FeatureArray,
    PhotoAccuracy,
    Split,
    Stage,
    ignore_epoch,
    train_epochs,
    training_fingerprint,
    with_negatives,
)


@dataclass(frozen=True)
class TrainedHead:
    """A head with the weights of its best epoch, the metrics of each epoch, and whether Ctrl-C ended it.
    `discarded`: no epoch of fine-tuning lowered the loss on val, so the weights are those from before it.

    `reducer` maps features through `blocks` and the head's first layer, which has no weights; `classifier`
    maps its output to probabilities. `pooled` [N, W] are the channel means of the frozen base's last output
    for the training pictures.
    """

    blocks: Sequence[keras.layers.Layer]
    head: Sequence[keras.layers.Layer]
    reducer: keras.Model
    classifier: keras.Model
    history: Sequence[EpochMetrics]
    interrupted: bool
    pooled: NDArray[np.float32]
    discarded: bool = False


def train_head(
    train: Split,
    val: Split,
    classes: int,
    settings: Settings,
    blocks: Sequence[keras.layers.Layer] = (),
    checkpoint_dir: Path | None = None,
    on_epoch: EpochCallback = ignore_epoch,
) -> TrainedHead:
    """Train the recipe's head on features [N, height, width, channels] and class indices [N].

    In `train`, negatives follow the photos. `blocks` are the base's layers between the features and the head;
    they stay frozen here. See train/trainer.py for the best epoch, `checkpoint_dir` and `on_epoch`.
    """
    make_deterministic(settings.seed)
    head = HEADS[settings.recipe](classes, settings)
    # The blocks and the first layer do not train, so their output is computed once for all epochs.
    reducer = keras.Sequential([keras.Input(train[0].shape[1:]), *blocks, head[0]])
    train_x, val_x = predict_in_batches(reducer, train[0]), predict_in_batches(reducer, val[0])
    model = keras.Sequential([keras.Input(train_x.shape[1:]), *head[1:]])
    _initialize_weights(head[1:], settings.seed)
    photos = int((train[1] != NEGATIVE).sum())
    batches = Batches(
        train_x,
        train[1],
        classes,
        settings.batch,
        with_negatives(
            lambda epoch: np.random.default_rng([settings.seed, epoch]).permutation(photos),
            photos,
            len(train_x) - photos,
            settings.seed,
        ),
        class_weight=class_weights(train[1], classes, settings.class_weight),
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(settings.learning_rate, settings.epochs * len(batches)),
            weight_decay=settings.weight_decay,
        ),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=settings.label_smoothing),
        metrics=[PhotoAccuracy()],
    )
    stage = Stage(
        "head",
        settings.epochs,
        checkpoint_dir,
        training_fingerprint(settings, train, val) if checkpoint_dir else "",
        on_epoch,
    )
    trained = train_epochs(model, batches, Batches(val_x, val[1], classes), stage)
    channels = int(blocks[-1].output.shape[-1] if blocks else train[0].shape[-1])
    pooled = train_x.reshape(len(train_x), -1, channels).mean(1)
    return TrainedHead(blocks, head, reducer, model, trained.epochs, trained.interrupted, pooled)


def predict_in_batches(model: keras.Model, features: FeatureArray) -> NDArray[np.float32]:
    """The model's only output for features, float32 [N, …], with bounded memory."""
    return predict_outputs(model, features)[0]


def predict_outputs(model: keras.Model, features: FeatureArray) -> list[NDArray[np.float32]]:
    """Each output of a model for features, float32 [N, …], with bounded memory."""
    parts: list[list[NDArray[np.float32]]] = [
        [np.empty((0, *output.shape[1:]), np.float32)] for output in model.outputs
    ]
    for start in range(0, len(features), EVALUATION_BATCH):
        batch = features[start : start + EVALUATION_BATCH].astype(np.float32)
        for part, output in zip(parts, keras.tree.flatten(model.predict_on_batch(batch)), strict=True):
            part.append(np.asarray(keras.ops.convert_to_numpy(output), np.float32))
    return [np.concatenate(part) for part in parts]


def make_deterministic(seed: int) -> None:
    """From here on, the same seed, data and machine give the same numbers on a CPU."""
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_op_determinism()


def _initialize_weights(layers: Sequence[keras.layers.Layer], seed: int) -> None:
    """Set the Dense kernels to Glorot uniform values from numpy, because each backend draws other numbers.

    Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """
    rng = np.random.default_rng(seed)
    for layer in layers:
        if isinstance(layer, keras.layers.Dense):
            bound = np.sqrt(6 / sum(layer.kernel.shape))
            layer.kernel.assign(rng.uniform(-bound, bound, layer.kernel.shape).astype(np.float32))
