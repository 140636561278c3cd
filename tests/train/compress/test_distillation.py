from __future__ import annotations

import keras
import numpy as np
import pytest

from train.compress.distillation import Distillation, _first_hint, _Lessons, distill
from train.compress.pipeline import features
from train.compress.pruning import unit
from train.compress.teacher_cache import TeacherOutputs
from train.network.vgg import CONVOLUTIONS, Weights, random_weights
from train.settings import Settings
from train.train_head import train_head

COUNT = 24


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(dict.fromkeys(CONVOLUTIONS, 8), (32, 32))


@pytest.fixture(scope="module")
def lessons() -> TeacherOutputs:
    """Dark pictures and light ones, and features that tell them apart."""
    chance = np.random.default_rng(1)
    labels = np.arange(COUNT, dtype=np.int32) % 2
    pictures = (
        chance.integers(0, 60, (COUNT, 32, 32, 3)) + 180 * labels[:, np.newaxis, np.newaxis, np.newaxis]
    )
    truth = np.eye(2, dtype=np.float32)[labels]
    taught = np.concatenate([truth, np.full((COUNT, 2), 0.1)], axis=1).astype(np.float32)
    return TeacherOutputs(pictures.astype(np.uint8), labels, 0.9 * truth + 0.05, taught)


def test_it_learns_what_it_is_told(weights: Weights, lessons: TeacherOutputs) -> None:
    pooled = features(weights, lessons.pictures)
    seen = pooled[:, np.newaxis, np.newaxis, :], lessons.labels
    fitted = train_head(seen, seen, 2, Settings(epochs=1))
    before = fitted.classifier.get_weights()[0].copy()
    how = Distillation(5, 8, 1e-3, 0.0, 0, lambda epoch: np.random.default_rng(epoch).permutation(COUNT))
    tuned, rows, stopped = distill(fitted, weights, pooled, lessons, lessons, how)
    assert not stopped and [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert set(rows[0]) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"}
    assert min(row["val_loss"] for row in rows[1:]) < rows[0]["val_loss"]
    assert tuned.widths == weights.widths
    assert (tuned.tensors["block1_conv1/kernel"] != weights.tensors["block1_conv1/kernel"]).any()
    assert (fitted.classifier.get_weights()[0] != before).any(), "the head goes along"


def test_hints_begin_as_least_squares() -> None:
    chance = np.random.default_rng(2)
    small = unit(chance.normal(size=(200, 6)))
    whole = small @ chance.normal(size=(6, 4)) + 0.3
    kernel, bias = _first_hint(small, whole)
    left = np.square(small @ kernel + bias - whole).sum() / np.square(whole - whole.mean(0)).sum()
    assert left < 1e-3


def test_a_batch_is_truth_probabilities_and_features(lessons: TeacherOutputs) -> None:
    batches = _Lessons(lessons, 8)
    pictures, wanted = batches[1]
    np.testing.assert_array_equal(pictures, lessons.pictures[8:16])
    np.testing.assert_array_equal(wanted[:, :2], keras.utils.to_categorical(lessons.labels[8:16], 2))
    np.testing.assert_allclose(wanted[:, 2:4].sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(wanted[:, 4:], axis=1), 1, rtol=1e-6)


def test_half_of_the_pictures_are_mirrored_others_in_every_epoch(lessons: TeacherOutputs) -> None:
    batches = _Lessons(lessons, COUNT, None, seed=0)
    turned = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        pictures, wanted = batches[0]
        same = (pictures == lessons.pictures).all((1, 2, 3))
        mirror = (pictures == lessons.pictures[:, :, ::-1]).all((1, 2, 3))
        assert (same | mirror).all() and 4 < mirror.sum() < 20
        np.testing.assert_array_equal(wanted[:, :2].argmax(1), lessons.labels)
        turned.append(mirror)
    assert (turned[0] != turned[1]).any()
