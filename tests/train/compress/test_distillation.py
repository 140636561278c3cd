from __future__ import annotations

import keras
import numpy as np
import pytest

from train.compress.distillation import (
    DistillationBatches,
    DistillationConfig,
    distill,
    least_squares_projection,
)
from train.compress.features import predict_pooled_features
from train.compress.layers import unit_length
from train.compress.teacher_cache import TeacherOutputs
from train.network.vgg import CONVOLUTIONS, Weights, random_weights
from train.settings import Settings
from train.train_head import train_head
from train.trainer import Stage

COUNT = 24


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Random weights with 8 channels in every layer."""
    return random_weights(dict.fromkeys(CONVOLUTIONS, 8), (32, 32))


@pytest.fixture(scope="module")
def teacher() -> TeacherOutputs:
    """Dark pictures and light ones, and features that separate them."""
    rng = np.random.default_rng(1)
    labels = np.arange(COUNT, dtype=np.int32) % 2
    pictures = rng.integers(0, 60, (COUNT, 32, 32, 3)) + 180 * labels[:, np.newaxis, np.newaxis, np.newaxis]
    one_hot = np.eye(2, dtype=np.float32)[labels]
    features = np.concatenate([one_hot, np.full((COUNT, 2), 0.1)], axis=1).astype(np.float32)
    return TeacherOutputs(pictures.astype(np.uint8), labels, 0.9 * one_hot + 0.05, features)


def test_distillation_trains_network_and_head(weights: Weights, teacher: TeacherOutputs) -> None:
    pooled = predict_pooled_features(weights, teacher.pictures)
    features = pooled[:, np.newaxis, np.newaxis, :], teacher.labels
    head = train_head(features, features, 2, Settings(epochs=1))
    before = head.classifier.get_weights()[0].copy()
    config = DistillationConfig(8, 1e-3, 0.0, 0, lambda epoch: np.random.default_rng(epoch).permutation(24))
    result, history = distill(head, weights, pooled, teacher, teacher, config, Stage("distill", 3))
    assert not history.interrupted and [row["epoch"] for row in history.epochs] == [1, 2, 3]
    assert set(history.epochs[0]) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"}
    assert min(row["val_loss"] for row in history.epochs[1:]) < history.epochs[0]["val_loss"]
    assert result.widths == weights.widths
    assert (result.tensors["block1_conv1/kernel"] != weights.tensors["block1_conv1/kernel"]).any()
    assert (head.classifier.get_weights()[0] != before).any()


def test_the_projection_starts_with_the_least_squares_solution() -> None:
    rng = np.random.default_rng(2)
    student = unit_length(rng.normal(size=(200, 6)))
    teacher = student @ rng.normal(size=(6, 4)) + 0.3
    kernel, bias = least_squares_projection(student, teacher)
    residual = np.square(student @ kernel + bias - teacher).sum()
    assert residual < 1e-3 * np.square(teacher - teacher.mean(0)).sum()


def test_targets_are_class_probabilities_and_features(teacher: TeacherOutputs) -> None:
    pictures, targets = DistillationBatches(teacher, 8)[1]
    np.testing.assert_array_equal(pictures, teacher.pictures[8:16])
    np.testing.assert_array_equal(targets[:, :2], keras.utils.to_categorical(teacher.labels[8:16], 2))
    np.testing.assert_allclose(targets[:, 2:4].sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(targets[:, 4:], axis=1), 1, rtol=1e-6)


def test_each_epoch_mirrors_another_half_of_the_pictures(teacher: TeacherOutputs) -> None:
    batches = DistillationBatches(teacher, COUNT, None, seed=0)
    mirrored = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        pictures, targets = batches[0]
        same = (pictures == teacher.pictures).all((1, 2, 3))
        mirror = (pictures == teacher.pictures[:, :, ::-1]).all((1, 2, 3))
        assert (same | mirror).all() and 4 < mirror.sum() < 20
        np.testing.assert_array_equal(targets[:, :2].argmax(1), teacher.labels)
        mirrored.append(mirror)
    assert (mirrored[0] != mirrored[1]).any()
