from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from train.metrics import SplitMetrics, compute_metrics
from train.network.heads import build_classifier
from train.network.vgg import read_weights
from train.settings import RECIPES
from train.train_head import TrainedHead, predict, train_head
from train.trainer import Watch

Split = tuple[NDArray[Any], NDArray[Any]]


def blobs(count: int, seed: int) -> Split:
    """Features of three classes, each with some channels of its own; what differs is noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 3
    x = rng.gamma(0.5, 2.0, (count, 7, 7, 512))
    for label in range(3):
        x[labels == label, :, :, label * 60 : label * 60 + 60] += 4.0
    return x.astype(np.float16), labels


TRAIN, VAL = blobs(45, 0), blobs(30, 1)
NONE: Split = (np.empty((0, 7, 7, 512), np.float16), np.empty(0, np.int32))


def measure(fitted: TrainedHead, split: Split) -> SplitMetrics | None:
    return compute_metrics(predict(fitted.rest, predict(fitted.reduce, split[0])), split[1], ("a", "b", "c"))


def weights_of(fitted: TrainedHead) -> list[NDArray[Any]]:
    return [array for layer in fitted.head for array in layer.get_weights()]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_head_learns_and_repeats(recipe: str) -> None:
    settings = replace(RECIPES[recipe], epochs=4, batch=8, learning_rate=1e-3)
    first, again = train_head(TRAIN, VAL, 3, settings), train_head(TRAIN, VAL, 3, settings)
    assert len(first.history) == 4 and not first.stopped
    assert first.history == again.history
    for one, two in zip(weights_of(first), weights_of(again), strict=True):
        np.testing.assert_array_equal(one, two)
    other = train_head(TRAIN, VAL, 3, replace(settings, seed=1))
    assert other.history != first.history
    measured = measure(first, VAL)
    assert measured is not None and measured["top1"] > 0.8


@pytest.mark.parametrize("recipe", RECIPES)
def test_dropout_is_heeded(recipe: str) -> None:
    settings = replace(RECIPES[recipe], epochs=1, dropout=0.0)
    assert (
        train_head(TRAIN, VAL, 3, replace(settings, dropout=0.5)).history
        != train_head(TRAIN, VAL, 3, settings).history
    )


def test_the_best_epoch_is_kept() -> None:
    # What was learned does not hold for these photos, so that each epoch makes their loss worse.
    others = VAL[0], (VAL[1] + 1) % 3
    fitted = train_head(TRAIN, others, 3, replace(RECIPES["article"], epochs=4))
    measured = measure(fitted, others)
    assert measured is not None
    losses = [row["val_loss"] for row in fitted.history]
    assert losses == sorted(losses) and losses[-1] > 1.2 * losses[0]
    assert measured["loss"] == pytest.approx(losses[0], rel=0.02)


def test_without_validation_photos() -> None:
    fitted = train_head(TRAIN, NONE, 3, replace(RECIPES["pooled"], epochs=2))
    assert "val_loss" not in fitted.history[0]
    assert measure(fitted, NONE) is None


def test_ctrl_c_keeps_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Watch.on_epoch_end

    def then_stop(self: Watch, epoch: int, logs: Any = None) -> None:
        end(self, epoch, logs)
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Watch, "on_epoch_end", then_stop)
    fitted = train_head(TRAIN, VAL, 3, replace(RECIPES["pooled"], epochs=1000))
    assert fitted.stopped and 3 <= len(fitted.history) < 10
    measured = measure(fitted, VAL)
    assert measured is not None
    assert measured["loss"] == pytest.approx(min(row["val_loss"] for row in fitted.history), rel=0.05)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_classifier_is_flat_and_made_of_standard_layers(recipe: str) -> None:
    fitted = train_head(TRAIN, VAL, 3, replace(RECIPES[recipe], epochs=1))
    model = build_classifier(read_weights(), fitted.head)
    names = [layer.name for layer in model.layers]
    assert names[:3] == ["image", "imagenet_mean", "block1_conv1"]
    assert names[-2:] == ["logits", "probabilities"]
    assert not any(isinstance(layer, keras.Model | keras.layers.Lambda) for layer in model.layers)
    assert model.input.dtype == "uint8" and model.output.dtype == "float32"
    assert model.output.shape == (None, 3)


def test_figures_by_hand() -> None:
    probabilities = np.array([[0.8, 0.2, 0.0], [0.5, 0.4, 0.1], [0.1, 0.9, 0.0], [0.3, 0.7, 0.0]])
    found = compute_metrics(probabilities, np.array([0, 1, 1, 0]), ("a", "b", "c"))
    assert found is not None and found["n"] == 4 and found["top1"] == 0.5
    assert found["loss"] == pytest.approx(-np.log([0.8, 0.4, 0.9, 0.3]).mean())
    assert found["confusion"] == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert found["per_class"]["a"] == {"n": 2, "recall": 0.5, "precision": 0.5}
    assert found["per_class"]["c"] == {"n": 0, "recall": None, "precision": None}
