"""Distillation: train the compressed network to give the outputs of the teacher, the run's own network.

It learns the teacher's probabilities (Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network",
2015) and, through linear projections that are dropped afterwards, its pooled features and its descriptor
(Romero et al., "FitNets", 2015), which hold far more information than a few probabilities. The descriptor, on
photos and negatives, keeps what the teacher knows about everything else: the detector of unknown pictures
needs it. train/trainer.py holds the loop and its checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from train.compress.layers import unit_length
from train.compress.teacher_cache import TeacherOutputs
from train.finetune import compute_dtype, warmup_cosine
from train.network.descriptor import SMALLEST_MEAN, channel_means, describe
from train.network.vgg import POOLS, Weights, base_layers, load_weights, tensors_of
from train.train_head import TrainedHead, make_deterministic
from train.trainer import Batches, EpochOrder, PhotoAccuracy, Stage, TrainingHistory, train_epochs

HARD_LABEL_WEIGHT = 0.3  # of the photo's class in the target; the teacher's probabilities have the rest
FEATURE_LOSS_WEIGHT = 20.0  # of the squared distance of features: its loss and the cross-entropy are near 1
# Of the share of the teacher descriptor's variance that the student's descriptor does not explain. This share
# is 0.4 for the released network, on pictures that the projection is not solved on: this loss is near 1 too.
DESCRIPTOR_LOSS_WEIGHT = 2.0
PROJECTION_RIDGE = 1e-2  # times the mean of the diagonal
# The descriptor's square root has an infinite slope at 0. In training, values below this share of their
# layer's mean stay constant.
MIN_SHARE_OF_MEAN = 1e-2


@dataclass(frozen=True)
class DistillationConfig:
    """The settings of distillation; `epoch_order` returns the rows of an epoch by its number."""

    batch: int
    learning_rate: float
    weight_decay: float
    seed: int
    epoch_order: EpochOrder


@dataclass(frozen=True)
class Start:
    """The channel means [n, W] of each pooling layer of the network before distillation, for these `rows` [n]
    of the training pictures.
    """

    means: Sequence[NDArray[np.float32]]
    rows: NDArray[np.intp]


def distill(
    head: TrainedHead,
    weights: Weights,
    start: Start,
    train: TeacherOutputs,
    val: TeacherOutputs,
    config: DistillationConfig,
    stage: Stage,
) -> tuple[Weights, TrainingHistory]:
    """Train the network `weights` and `head`, whose layers get their new weights in place.

    The first weights of the projections are solved on `start`. Returns the weights of the epoch with the
    lowest loss on `val`, which holds no negatives.
    """
    make_deterministic(config.seed)
    image = keras.Input(train.pictures.shape[1:], name="image")
    base = keras.Model(image, base_layers(image, compute_dtype(), widths=weights.widths, trainable=True))
    layers = [type(layer).from_config(layer.get_config()) for layer in head.head]
    features, descriptors = (
        keras.layers.Dense(outputs.shape[1], name=f"{name}_projection", dtype="float32")
        for name, outputs in (("feature", train.features), ("descriptor", train.descriptors))
    )
    x = unit = base.output
    for layer in layers:
        x = layer(x)
        unit = x if layer.name == "unit" else unit
    means = [channel_means(base.get_layer(pool).output) for pool in POOLS]
    projected = [features(unit), descriptors(_smooth_descriptor(means))]
    model = keras.Model(image, keras.layers.Concatenate(dtype="float32")([x, *projected]))
    load_weights(base, weights)
    for layer, trained in zip(layers, head.head, strict=True):
        layer.set_weights(trained.get_weights())
    scale = descriptor_scale(train.descriptors[start.rows])
    features.set_weights(
        least_squares_projection(unit_length(start.means[-1]), unit_length(train.features[start.rows]))
    )
    teacher_descriptors = scale * train.descriptors[start.rows].astype(np.float32)
    descriptors.set_weights(least_squares_projection(describe(start.means), teacher_descriptors))
    batches = DistillationBatches(train, scale, config.batch, config.epoch_order, config.seed)
    _compile(model, config, stage.epochs * len(batches), train)
    history = train_epochs(model, batches, DistillationBatches(val, scale), stage)
    for layer, trained in zip(head.head, layers, strict=True):
        layer.set_weights(trained.get_weights())
    return replace(weights, tensors=tensors_of(base.layers)), history


def descriptor_scale(descriptors: NDArray[Any]) -> float:
    """The factor that gives descriptors [n, D] a total variance of 1."""
    return float(1 / np.sqrt(max(descriptors.astype(np.float64).var(0).sum(), 1e-9)))


def least_squares_projection(student: NDArray[Any], teacher: NDArray[Any]) -> list[NDArray[np.float32]]:
    """The kernel and bias that map the student's features to the teacher's with the least squared error.

    Random first weights would make the first steps undo the reconstruction.
    """
    student, teacher = student.astype(np.float64), teacher.astype(np.float64)
    inputs, outputs = student - student.mean(0), teacher - teacher.mean(0)
    gram = inputs.T @ inputs / len(inputs)
    gram += PROJECTION_RIDGE * gram.diagonal().mean() * np.eye(len(gram))
    kernel = np.linalg.solve(gram, inputs.T @ outputs / len(inputs))
    bias = teacher.mean(0) - student.mean(0) @ kernel
    return [kernel.astype(np.float32), bias.astype(np.float32)]


def _smooth_descriptor(means: Sequence[keras.KerasTensor]) -> keras.KerasTensor:
    """The descriptor [N, D] of channel means [N, W] of each pooling layer, with a bounded slope."""
    shares = [mean / (keras.ops.mean(mean, axis=1, keepdims=True) + SMALLEST_MEAN) for mean in means]
    return keras.ops.sqrt(keras.ops.maximum(keras.ops.concatenate(shares, axis=1), MIN_SHARE_OF_MEAN))


class DistillationBatches(Batches):
    """Pictures, and as targets [C + C + W + D]: the one-hot class, the probabilities to learn, the features
    of length 1, and the descriptor times `scale`. The class of a negative is uniform.

    With a `seed`, half of the pictures of each epoch are mirrored. The teacher's outputs for a mirrored
    picture are nearly the same, so it does not run again.
    """

    def __init__(
        self,
        outputs: TeacherOutputs,
        scale: float,
        batch_size: int = 32,
        epoch_order: EpochOrder | None = None,
        seed: int | None = None,
    ) -> None:
        self.outputs, self.scale, self.seed = outputs, scale, seed
        classes = outputs.probabilities.shape[1]
        super().__init__(outputs.pictures, outputs.labels, classes, batch_size, epoch_order)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        rng = np.random.default_rng([self.seed or 0, epoch, 1])
        self.mirrored = rng.random(len(self.labels)) < (0.0 if self.seed is None else 0.5)

    def __getitem__(self, step: int) -> tuple[NDArray[Any], ...]:
        rows = self.rows[step * self.batch_size : (step + 1) * self.batch_size]
        pictures, one_hot = super().__getitem__(step)
        mirrored = self.mirrored[rows]
        pictures[mirrored] = pictures[mirrored, :, ::-1]
        soft = HARD_LABEL_WEIGHT * one_hot + (1 - HARD_LABEL_WEIGHT) * self.outputs.probabilities[rows]
        features = unit_length(self.outputs.features[rows])
        descriptors = self.scale * self.outputs.descriptors[rows].astype(np.float32)
        return pictures, np.concatenate([one_hot, soft, features, descriptors], axis=1, dtype=np.float32)


class _Accuracy(PhotoAccuracy):
    """The accuracy of the probabilities, which come first in the targets and in the outputs."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def update_state(self, targets: Any, outputs: Any, sample_weight: Any = None) -> None:
        super().update_state(targets[:, : self.classes], outputs[:, : self.classes])


def _compile(model: keras.Model, config: DistillationConfig, steps: int, train: TeacherOutputs) -> None:
    classes = train.probabilities.shape[1]
    weights = np.repeat(
        np.array([FEATURE_LOSS_WEIGHT, DESCRIPTOR_LOSS_WEIGHT], np.float32),
        [train.features.shape[1], train.descriptors.shape[1]],
    )

    def loss(targets: Any, outputs: Any) -> Any:
        soft = targets[:, classes : 2 * classes]
        cross_entropy = keras.ops.categorical_crossentropy(soft, outputs[:, :classes])
        squares = keras.ops.square(targets[:, 2 * classes :] - outputs[:, classes:])
        return cross_entropy + keras.ops.sum(weights * squares, axis=-1)

    schedule = warmup_cosine(config.learning_rate, steps)
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=config.weight_decay),
        loss=loss,
        metrics=[_Accuracy(classes)],
        jit_compile=keras.backend.backend() == "jax",
    )
