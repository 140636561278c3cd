from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest

from train.compress.distillation import (
    HARD_LABEL_WEIGHT,
    DistillationBatches,
    DistillationConfig,
    Start,
    descriptor_scale,
    distill,
    least_squares_projection,
)
from train.compress.features import predict_channel_means
from train.compress.layers import unit_length
from train.compress.teacher_cache import TeacherOutputs
from train.data.class_weights import NEGATIVE
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
    """Dark pictures and light ones, and features that separate them; the last four are negatives."""
    rng = np.random.default_rng(1)
    labels = np.arange(COUNT, dtype=np.int32) % 2
    pictures = rng.integers(0, 60, (COUNT, 32, 32, 3)) + 180 * labels[:, np.newaxis, np.newaxis, np.newaxis]
    one_hot = np.eye(2, dtype=np.float32)[labels]
    features = np.concatenate([one_hot, np.full((COUNT, 2), 0.1)], axis=1).astype(np.float32)
    descriptors = np.concatenate([one_hot, rng.random((COUNT, 4))], axis=1).astype(np.float16)
    labels[-4:] = NEGATIVE
    return TeacherOutputs(pictures.astype(np.uint8), labels, 0.9 * one_hot + 0.05, features, descriptors)


def test_distillation_trains_network_and_head(weights: Weights, teacher: TeacherOutputs) -> None:
    rows = np.arange(COUNT)
    means = predict_channel_means(weights, teacher.pictures, rows, "pictures")
    features = means[-1][:, np.newaxis, np.newaxis, :]
    val = teacher.without_negatives()
    assert len(val.labels) == COUNT - 4 and len(val.pictures) == len(val.descriptors) == COUNT - 4
    head = train_head((features, teacher.labels), (features[:-4], val.labels), 2, Settings(epochs=1))
    before = head.classifier.get_weights()[0].copy()
    config = DistillationConfig(8, 1e-3, 0.0, 0, lambda epoch: np.random.default_rng(epoch).permutation(24))
    start = Start(means, rows)
    result, history = distill(head, weights, start, teacher, val, config, Stage("distill", 3))
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


def test_dead_channels_and_black_pictures_keep_the_weights_finite(weights: Weights) -> None:
    """A channel mean of 0 has an infinite slope in the descriptor itself."""
    kernel = weights.tensors["block4_conv3/kernel"].copy()
    kernel[..., ::2] = -abs(kernel[..., ::2])
    dead = replace(weights, tensors={**weights.tensors, "block4_conv3/kernel": kernel})
    rng = np.random.default_rng(0)
    pictures = np.concatenate([np.zeros((4, 32, 32, 3)), rng.integers(0, 256, (4, 32, 32, 3))])
    outputs = TeacherOutputs(
        pictures.astype(np.uint8),
        np.arange(8, dtype=np.int32) % 2,
        np.full((8, 2), 0.5, np.float32),
        rng.random((8, 4), np.float32),
        rng.random((8, 6)).astype(np.float16),
    )
    rows = np.arange(8)
    means = predict_channel_means(dead, outputs.pictures, rows, "pictures")
    features = means[-1][:, np.newaxis, np.newaxis, :], outputs.labels
    head = train_head(features, features, 2, Settings(epochs=1))
    config = DistillationConfig(4, 1e-3, 0.0, 0, lambda epoch: rows)
    result, history = distill(head, dead, Start(means, rows), outputs, outputs, config, Stage("distill", 2))
    assert all(np.isfinite(tensor).all() for tensor in result.tensors.values())
    assert np.isfinite([row["loss"] for row in history.epochs]).all()


def test_the_share_of_the_descriptors_variance_is_the_loss(teacher: TeacherOutputs) -> None:
    scaled = descriptor_scale(teacher.descriptors) * teacher.descriptors.astype(np.float64)
    assert scaled.var(0).sum() == pytest.approx(1)


def test_targets_are_class_probabilities_features_and_descriptors(teacher: TeacherOutputs) -> None:
    pictures, targets = DistillationBatches(teacher, 2.0, 8)[1]
    np.testing.assert_array_equal(pictures, teacher.pictures[8:16])
    np.testing.assert_array_equal(targets[:, :2], keras.utils.to_categorical(teacher.labels[8:16], 2))
    np.testing.assert_allclose(targets[:, 2:4].sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(targets[:, 4:8], axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(targets[:, 8:], 2.0 * teacher.descriptors[8:16].astype(np.float32))


def test_the_class_of_a_negative_is_uniform(teacher: TeacherOutputs) -> None:
    _, targets = DistillationBatches(teacher, 1.0, 8)[2]
    np.testing.assert_array_equal(targets[-4:, :2], 0.5)
    soft = HARD_LABEL_WEIGHT / 2 + (1 - HARD_LABEL_WEIGHT) * teacher.probabilities[-4:]
    np.testing.assert_allclose(targets[-4:, 2:4], soft, rtol=1e-6)


def test_each_epoch_mirrors_another_half_of_the_pictures(teacher: TeacherOutputs) -> None:
    batches = DistillationBatches(teacher, 1.0, COUNT, None, seed=0)
    mirrored = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        pictures, targets = batches[0]
        same = (pictures == teacher.pictures).all((1, 2, 3))
        mirror = (pictures == teacher.pictures[:, :, ::-1]).all((1, 2, 3))
        assert (same | mirror).all() and 4 < mirror.sum() < 20
        np.testing.assert_array_equal(targets[:-4, :2].argmax(1), teacher.labels[:-4])
        mirrored.append(mirror)
    assert (mirrored[0] != mirrored[1]).any()
