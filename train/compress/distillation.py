"""Teach a smaller network what the whole one says of the same pictures.

It learns the whole network's probabilities (Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural
Network", 2015) and, through a linear layer that is dropped afterwards, its pooled features (Romero et al.,
"FitNets", 2015), which say far more of a picture than a few probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from train.compress.pruning import unit
from train.compress.teacher_cache import TeacherOutputs
from train.finetune import compute_dtype, warmup_cosine
from train.network.vgg import Weights, base_layers, load_weights, tensors_of
from train.train_head import TrainedHead, make_deterministic
from train.trainer import Batches, EpochCallback, EpochMetrics, Stage, train_epochs

TRUTH = 0.3  # how much the photo's own class counts in what is learnt, the trained model's answer the rest
HINTS = 20.0  # how much the features' squared distance counts beside the cross-entropy: both are then about 1
HINT_RIDGE = 1e-2  # of the mean diagonal


@dataclass(frozen=True)
class Distillation:
    """How long and how fast; `order` gives an epoch's rows by its number."""

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    seed: int
    order: Callable[[int], NDArray[np.intp]]


def distill(
    start: TrainedHead,
    weights: Weights,
    pooled: NDArray[np.float32],
    train: TeacherOutputs,
    val: TeacherOutputs,
    how: Distillation,
    kept: Path | None = None,
    fingerprint: str = "",
    tell: EpochCallback = lambda stage, row: None,
) -> tuple[Weights, Sequence[EpochMetrics], bool]:
    """Train the network of `weights` on, with the head of `start`, which is left with its new weights.

    `pooled` is what the network gives now for the first of `train`'s pictures, [n, D]. Returns the network's
    weights, those of the epoch with the lowest loss on `val`, each epoch's figures, and whether Ctrl-C cut it
    short; train/epochs.py says how it goes on from `kept`.
    """
    make_deterministic(how.seed)
    image = keras.Input(train.pictures.shape[1:], name="image")
    x: Any = base_layers(image, compute_dtype(), widths=weights.widths, trainable=True)
    head = [type(layer).from_config(layer.get_config()) for layer in start.head]
    hint = keras.layers.Dense(train.features.shape[1], name="hint", dtype="float32")
    for layer in head:
        x = layer(x)
        if layer.name == "unit":
            hinted = hint(x)
    model = keras.Model(image, keras.layers.Concatenate(dtype="float32")([x, hinted]))
    load_weights(model, weights)
    for layer, trained in zip(head, start.head, strict=True):
        layer.set_weights(trained.get_weights())
    hint.set_weights(_first_hint(unit(pooled), unit(train.features[: len(pooled)])))
    classes = train.probabilities.shape[1]
    batches = _Lessons(train, how.batch, how.order, how.seed)
    schedule = warmup_cosine(how.learning_rate, how.epochs * len(batches))

    def loss(wanted: Any, found: Any) -> Any:
        crossed = keras.ops.categorical_crossentropy(wanted[:, classes : 2 * classes], found[:, :classes])
        apart = keras.ops.square(wanted[:, 2 * classes :] - found[:, classes:])
        return crossed + HINTS * keras.ops.sum(apart, axis=-1)

    def accuracy(wanted: Any, found: Any) -> Any:
        return keras.metrics.categorical_accuracy(wanted[:, :classes], found[:, :classes])

    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=how.weight_decay),
        loss=loss,
        metrics=[keras.metrics.MeanMetricWrapper(accuracy, name="accuracy")],
        jit_compile=keras.backend.backend() == "jax",
    )
    stage = Stage("distill", how.epochs, kept, fingerprint, None, tell)
    trained_epochs = train_epochs(model, batches, _Lessons(val), stage)
    for layer, trained in zip(start.head, head, strict=True):
        layer.set_weights(trained.get_weights())
    return (
        replace(weights, tensors=tensors_of(model.layers)),
        trained_epochs.epochs,
        trained_epochs.interrupted,
    )


def _first_hint(small: NDArray[np.float64], whole: NDArray[np.float64]) -> list[NDArray[np.float32]]:
    """The least-squares map from the smaller network's features to the whole one's: hints then correct from
    the first step on, instead of undoing what reconstruction found.
    """
    inputs, outputs = small - small.mean(0), whole - whole.mean(0)
    gram = inputs.T @ inputs / len(inputs)
    gram += HINT_RIDGE * gram.diagonal().mean() * np.eye(len(gram))
    kernel = np.linalg.solve(gram, inputs.T @ outputs / len(inputs))
    bias = whole.mean(0) - small.mean(0) @ kernel
    return [kernel.astype(np.float32), bias.astype(np.float32)]


class _Lessons(Batches):
    """Pictures, and for each its class, the probabilities to learn and the features to learn, in one row.

    With a `seed`, half of the pictures are mirrored, others in every epoch: the trained model says nearly the
    same of a picture's mirror image, so that costs no look at it.
    """

    def __init__(
        self,
        of: TeacherOutputs,
        size: int = 32,
        order: Callable[[int], NDArray[np.intp]] | None = None,
        seed: int | None = None,
    ) -> None:
        self.of, self.seed = of, seed
        super().__init__(of.pictures, of.labels, of.probabilities.shape[1], size, order)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        chance = np.random.default_rng([self.seed or 0, epoch, 1])
        self.mirrored = chance.random(len(self.labels)) < (0.0 if self.seed is None else 0.5)

    def __getitem__(self, step: int) -> tuple[NDArray[Any], NDArray[Any]]:
        rows = self.rows[step * self.batch_size : (step + 1) * self.batch_size]
        pictures, truth = super().__getitem__(step)
        turned = self.mirrored[rows]
        pictures[turned] = pictures[turned, :, ::-1]
        learnt = TRUTH * truth + (1 - TRUTH) * self.of.probabilities[rows]
        return pictures, np.concatenate(
            [truth, learnt, unit(self.of.features[rows])], axis=1, dtype=np.float32
        )
