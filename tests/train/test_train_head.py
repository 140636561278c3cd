from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from train.metrics import SplitMetrics, compute_metrics
from train.network.heads import build_classifier
from train.network.vgg import CONVOLUTIONS, random_weights
from train.settings import RECIPES
from train.train_head import TrainedHead, predict_in_batches, train_head

Split = tuple[NDArray[Any], NDArray[Any]]
CHANNELS = 64


def synthetic_features(count: int, seed: int) -> Split:
    """Noisy features of three classes; 8 channels are higher in each class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 3
    x = rng.gamma(0.5, 2.0, (count, 7, 7, CHANNELS))
    for label in range(3):
        x[labels == label, :, :, label * 8 : label * 8 + 8] += 4.0
    return x.astype(np.float16), labels


TRAIN, VAL = synthetic_features(45, 0), synthetic_features(30, 1)
EMPTY: Split = (np.empty((0, 7, 7, CHANNELS), np.float16), np.empty(0, np.int32))


def evaluate(trained: TrainedHead, split: Split) -> SplitMetrics | None:
    probabilities = predict_in_batches(trained.classifier, predict_in_batches(trained.reducer, split[0]))
    return compute_metrics(probabilities, split[1], ("a", "b", "c"))


def weights_of(trained: TrainedHead) -> list[NDArray[Any]]:
    return [array for layer in trained.head for array in layer.get_weights()]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_head_learns_and_the_same_seed_gives_the_same_weights(recipe: str) -> None:
    settings = replace(RECIPES[recipe], epochs=4, batch=8, learning_rate=1e-2)
    first, again = train_head(TRAIN, VAL, 3, settings), train_head(TRAIN, VAL, 3, settings)
    assert len(first.history) == 4 and not first.interrupted
    assert first.history == again.history
    for one, two in zip(weights_of(first), weights_of(again), strict=True):
        np.testing.assert_array_equal(one, two)
    other = train_head(TRAIN, VAL, 3, replace(settings, seed=1, epochs=1))
    assert other.history[0] != first.history[0]
    metrics = evaluate(first, VAL)
    assert metrics is not None and metrics["top1"] > 0.8
    np.testing.assert_allclose(first.pooled, TRAIN[0].astype(np.float32).mean((1, 2)), rtol=1e-3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_dropout_changes_training(recipe: str) -> None:
    settings = replace(RECIPES[recipe], epochs=1, dropout=0.0)
    with_dropout = train_head(TRAIN, VAL, 3, replace(settings, dropout=0.5))
    assert with_dropout.history != train_head(TRAIN, VAL, 3, settings).history


def test_a_head_has_the_weights_of_its_best_epoch() -> None:
    trained = train_head(TRAIN, VAL, 3, replace(RECIPES["article"], epochs=3))
    metrics = evaluate(trained, VAL)
    assert metrics is not None
    assert metrics["loss"] == pytest.approx(min(row["val_loss"] for row in trained.history), rel=0.02)


def test_a_head_trains_without_validation_photos() -> None:
    trained = train_head(TRAIN, EMPTY, 3, replace(RECIPES["pooled"], epochs=2))
    assert "val_loss" not in trained.history[0]
    assert evaluate(trained, EMPTY) is None


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_classifier_is_one_flat_model_of_standard_layers(recipe: str) -> None:
    weights = random_weights(dict.fromkeys(CONVOLUTIONS, 8), (64, 64))
    features = np.zeros((3, *weights.output_shape("block5_pool")), np.float16), np.arange(3, dtype=np.int32)
    trained = train_head(features, features, 3, replace(RECIPES[recipe], epochs=1))
    model = build_classifier(weights, trained.head)
    names = [layer.name for layer in model.layers]
    assert names[:5] == ["image", "image_rows", "imagenet_mean", "image_pixels", "block1_conv1"]
    assert names[-2:] == ["logits", "probabilities"]
    assert not any(isinstance(layer, keras.Model | keras.layers.Lambda) for layer in model.layers)
    probabilities, features = model.outputs
    assert model.input.dtype == "uint8" and probabilities.dtype == features.dtype == "float32"
    assert probabilities.shape == (None, 3)
    assert features.shape == (None, {"pooled": 5 * 8, "article": 256}[recipe])


def test_figures_equal_values_computed_by_hand() -> None:
    probabilities = np.array([[0.8, 0.2, 0.0], [0.5, 0.4, 0.1], [0.1, 0.9, 0.0], [0.3, 0.7, 0.0]])
    metrics = compute_metrics(probabilities, np.array([0, 1, 1, 0]), ("a", "b", "c"))
    assert metrics is not None and metrics["n"] == 4 and metrics["top1"] == 0.5
    assert metrics["loss"] == pytest.approx(-np.log([0.8, 0.4, 0.9, 0.3]).mean())
    assert metrics["confusion"] == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert metrics["per_class"]["a"] == {"n": 2, "recall": 0.5, "precision": 0.5}
    assert metrics["per_class"]["c"] == {"n": 0, "recall": None, "precision": None}
