"""Distillation: train the compressed network to give the outputs of the uncompressed network, the teacher.

It learns the teacher's probabilities (Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network",
2015) and, through a linear projection that is dropped afterwards, its pooled features (Romero et al.,
"FitNets", 2015), which hold far more information than a few probabilities. train/trainer.py holds the loop
and its checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from train.compress.layers import unit_length
from train.compress.teacher_cache import TeacherOutputs
from train.finetune import compute_dtype, warmup_cosine
from train.network.vgg import Weights, base_layers, load_weights, tensors_of
from train.train_head import TrainedHead, make_deterministic
from train.trainer import Batches, EpochOrder, Stage, TrainingHistory, train_epochs

HARD_LABEL_WEIGHT = 0.3  # of the photo's class in the target; the teacher's probabilities have the rest
FEATURE_LOSS_WEIGHT = 20.0  # of the squared distance of features: its loss and the cross-entropy are near 1
PROJECTION_RIDGE = 1e-2  # times the mean of the diagonal


@dataclass(frozen=True)
class DistillationConfig:
    """The settings of distillation; `epoch_order` returns the rows of an epoch by its number."""

    batch: int
    learning_rate: float
    weight_decay: float
    seed: int
    epoch_order: EpochOrder


def distill(
    start: TrainedHead,
    weights: Weights,
    pooled: NDArray[np.float32],
    train: TeacherOutputs,
    val: TeacherOutputs,
    config: DistillationConfig,
    stage: Stage,
) -> tuple[Weights, TrainingHistory]:
    """Train the network `weights` and the head `start`; the head's layers get their new weights in place.

    `pooled` [n, D] holds the network's present features of the first n of `train`'s pictures. Returns the
    weights of the epoch with the lowest loss on `val`.
    """
    make_deterministic(config.seed)
    image = keras.Input(train.pictures.shape[1:], name="image")
    x: Any = base_layers(image, compute_dtype(), widths=weights.widths, trainable=True)
    head = [type(layer).from_config(layer.get_config()) for layer in start.head]
    projection = keras.layers.Dense(train.features.shape[1], name="projection", dtype="float32")
    for layer in head:
        x = layer(x)
        if layer.name == "unit":
            projected = projection(x)
    model = keras.Model(image, keras.layers.Concatenate(dtype="float32")([x, projected]))
    load_weights(model, weights)
    for layer, trained in zip(head, start.head, strict=True):
        layer.set_weights(trained.get_weights())
    teacher_features = train.features[: len(pooled)]
    projection.set_weights(least_squares_projection(unit_length(pooled), unit_length(teacher_features)))
    batches = DistillationBatches(train, config.batch, config.epoch_order, config.seed)
    _compile(model, config, stage.epochs * len(batches), train.probabilities.shape[1])
    history = train_epochs(model, batches, DistillationBatches(val), stage)
    for layer, trained in zip(start.head, head, strict=True):
        layer.set_weights(trained.get_weights())
    return replace(weights, tensors=tensors_of(model.layers)), history


def least_squares_projection(
    student: NDArray[np.float64], teacher: NDArray[np.float64]
) -> list[NDArray[np.float32]]:
    """The kernel and bias that map the student's features to the teacher's with the least squared error.

    Random first weights would make the first steps undo the reconstruction.
    """
    inputs, outputs = student - student.mean(0), teacher - teacher.mean(0)
    gram = inputs.T @ inputs / len(inputs)
    gram += PROJECTION_RIDGE * gram.diagonal().mean() * np.eye(len(gram))
    kernel = np.linalg.solve(gram, inputs.T @ outputs / len(inputs))
    bias = teacher.mean(0) - student.mean(0) @ kernel
    return [kernel.astype(np.float32), bias.astype(np.float32)]


class DistillationBatches(Batches):
    """Pictures, and as targets [C + C + D]: the one-hot class, the probabilities to learn, the features.

    With a `seed`, half of the pictures of each epoch are mirrored. The teacher's outputs for a mirrored
    picture are nearly the same, so it does not run again.
    """

    def __init__(
        self,
        outputs: TeacherOutputs,
        batch_size: int = 32,
        epoch_order: EpochOrder | None = None,
        seed: int | None = None,
    ) -> None:
        self.outputs, self.seed = outputs, seed
        classes = outputs.probabilities.shape[1]
        super().__init__(outputs.pictures, outputs.labels, classes, batch_size, epoch_order)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        rng = np.random.default_rng([self.seed or 0, epoch, 1])
        self.mirrored = rng.random(len(self.labels)) < (0.0 if self.seed is None else 0.5)

    def __getitem__(self, step: int) -> tuple[NDArray[Any], NDArray[Any]]:
        rows = self.rows[step * self.batch_size : (step + 1) * self.batch_size]
        pictures, one_hot = super().__getitem__(step)
        mirrored = self.mirrored[rows]
        pictures[mirrored] = pictures[mirrored, :, ::-1]
        soft = HARD_LABEL_WEIGHT * one_hot + (1 - HARD_LABEL_WEIGHT) * self.outputs.probabilities[rows]
        features = unit_length(self.outputs.features[rows])
        return pictures, np.concatenate([one_hot, soft, features], axis=1, dtype=np.float32)


def _compile(model: keras.Model, config: DistillationConfig, steps: int, classes: int) -> None:
    def loss(targets: Any, outputs: Any) -> Any:
        soft = targets[:, classes : 2 * classes]
        cross_entropy = keras.ops.categorical_crossentropy(soft, outputs[:, :classes])
        squares = keras.ops.square(targets[:, 2 * classes :] - outputs[:, classes:])
        return cross_entropy + FEATURE_LOSS_WEIGHT * keras.ops.sum(squares, axis=-1)

    def accuracy(targets: Any, outputs: Any) -> Any:
        return keras.metrics.categorical_accuracy(targets[:, :classes], outputs[:, :classes])

    schedule = warmup_cosine(config.learning_rate, steps)
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=config.weight_decay),
        loss=loss,
        metrics=[keras.metrics.MeanMetricWrapper(accuracy, name="accuracy")],
        jit_compile=keras.backend.backend() == "jax",
    )
