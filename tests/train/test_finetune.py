"""Fine-tuning of a VGG with an eighth of the channels, on features of small photos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from train.data.class_weights import NEGATIVE
from train.finetune import compute_dtype, fine_tune, upper_blocks, view_schedule
from train.network.vgg import CONVOLUTIONS, Weights, random_weights
from train.settings import Settings
from train.train_head import TrainedHead, predict_in_batches, train_head
from train.trainer import Batches, CheckpointCallback

SETTINGS = Settings(
    epochs=3,
    batch=5,
    views=2,
    fine_tune="block5",
    fine_tune_views=2,
    fine_tune_epochs=3,
    fine_tune_batch=4,
    fine_tune_learning_rate=1e-3,
)
CHANNELS = 64
Split = tuple[NDArray[Any], NDArray[Any]]


def synthetic_features(photos: int, views: int, seed: int) -> Split:
    """block4_pool features of two classes: the first view of all photos, then the second view of all."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(photos, dtype=np.int32) % 2, views)
    x = rng.gamma(0.3, 20.0, (len(labels), 4, 4, CHANNELS))
    for label in range(2):
        x[labels == label, :, :, label * 8 : label * 8 + 8] += 60.0
    return x.astype(np.float16), labels


TRAIN, VAL = synthetic_features(10, 2, 0), synthetic_features(6, 1, 1)


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Random weights of a VGG16 with an eighth of the channels."""
    return random_weights({name: filters // 8 for name, filters in CONVOLUTIONS.items()}, (64, 64))


def train_both(
    weights: Weights, checkpoint_dir: Path | None = None, settings: Settings = SETTINGS
) -> tuple[TrainedHead, Weights]:
    """Train the head, then fine-tune."""
    start = train_head(TRAIN, VAL, 2, settings, upper_blocks(weights, settings), checkpoint_dir)
    return fine_tune(start, TRAIN, VAL, 2, weights, settings, checkpoint_dir)


@pytest.fixture(scope="module")
def uninterrupted(weights: Weights) -> tuple[TrainedHead, Weights]:
    return train_both(weights)


def test_fine_tuning_changes_block5_only(
    uninterrupted: tuple[TrainedHead, Weights], weights: Weights
) -> None:
    trained, result = uninterrupted
    changed = {name for name, tensor in result.tensors.items() if (tensor != weights.tensors[name]).any()}
    assert changed == {f"block5_conv{conv}/{part}" for conv in (1, 2, 3) for part in ("kernel", "bias")}
    assert not trained.discarded and len(trained.history) == 3
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    assert {layer.compute_dtype for layer in trained.blocks} == {"float32"}
    probabilities = predict_in_batches(trained.classifier, predict_in_batches(trained.reducer, VAL[0]))
    loss = -np.log(probabilities[np.arange(len(VAL[1])), VAL[1]]).mean()
    best = min(row["val_loss"] for row in trained.history)
    assert loss == pytest.approx(best, rel=0.1, abs=0.01), "equal but for the rounding of bfloat16"


def test_photos_of_a_small_class_have_a_larger_weight(
    weights: Weights, uninterrupted: tuple[TrainedHead, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_by_class = []

    def stop(model: object, train: Batches, val: object, stage: object) -> None:
        weights_by_class.append(None if train.weights is None else train.weights.tolist())
        raise KeyboardInterrupt

    monkeypatch.setattr("train.finetune.train_epochs", stop)
    rows = np.flatnonzero(np.tile([True, True, True, False, True, False, True, False, True, False], 2))
    uneven = TRAIN[0][rows], TRAIN[1][rows]  # in each view, 5 photos of one class and 1 of the other
    for class_weight in ("none", "balanced"):
        with pytest.raises(KeyboardInterrupt):
            fine_tune(uninterrupted[0], uneven, VAL, 2, weights, replace(SETTINGS, class_weight=class_weight))
    assert weights_by_class == [None, pytest.approx([0.6, 3, 1])], "the last weight is that of a negative"


def test_fine_tuning_that_does_not_improve_val_leaves_all_weights(
    weights: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(SETTINGS, fine_tune_learning_rate=1e5)
    start = train_head(TRAIN, VAL, 2, settings, upper_blocks(weights, settings))
    head = [array.copy() for layer in start.head for array in layer.get_weights()]
    trained, result = fine_tune(start, TRAIN, VAL, 2, weights, settings)
    assert "block5: no epoch" in capsys.readouterr().out
    assert len(trained.history) == 3 and trained.discarded
    for name, tensor in weights.tensors.items():
        np.testing.assert_array_equal(result.tensors[name], tensor)
    for before, after in zip(head, [a for layer in trained.head for a in layer.get_weights()], strict=True):
        np.testing.assert_array_equal(before, after)


def test_negatives_lose_their_confident_class(weights: Weights) -> None:
    """Pictures with the features of a class and others, which training without negatives takes for it."""
    settings = replace(SETTINGS, epochs=20, fine_tune_epochs=6)
    negatives = synthetic_features(10, 1, 2)[0]
    negatives[..., 40:60] += np.float16(60)
    unlabelled = np.full(len(negatives), NEGATIVE, np.int32)
    with_none = np.concatenate([TRAIN[0], negatives]), np.concatenate([TRAIN[1], unlabelled])
    highest = []
    for train in (TRAIN, with_none):
        start = train_head(train, VAL, 2, settings, upper_blocks(weights, settings))
        trained, _ = fine_tune(start, train, VAL, 2, weights, settings)
        probabilities = predict_in_batches(trained.classifier, predict_in_batches(trained.reducer, negatives))
        highest.append(probabilities.max(1).mean())
        assert trained.history[-1]["val_accuracy"] == 1
    assert highest[1] < highest[0] - 0.1


def test_upper_blocks_follow_the_setting(weights: Weights) -> None:
    assert upper_blocks(weights, Settings()) == []
    assert [layer.name for layer in upper_blocks(weights, replace(SETTINGS, fine_tune="block4"))] == [
        f"block{block}_{layer}" for block in (4, 5) for layer in ("conv1", "conv2", "conv3", "pool")
    ]


def test_upper_blocks_have_the_weights_of_the_base(weights: Weights) -> None:
    for layer in upper_blocks(weights, SETTINGS, "float32"):
        if layer.weights:
            np.testing.assert_array_equal(layer.get_weights()[0], weights.tensors[f"{layer.name}/kernel"])
    assert compute_dtype() in ("float32", "mixed_bfloat16")


def test_an_epoch_has_each_photo_once_and_the_next_epoch_its_next_view() -> None:
    views: dict[int, list[int]] = {}
    batches = Batches(*TRAIN, 2, SETTINGS.fine_tune_batch, view_schedule(10, SETTINGS))
    for epoch in range(2):
        batches.set_epoch(epoch)
        assert sorted(batches.rows % 10) == list(range(10))
        for row in batches.rows:
            views.setdefault(row % 10, []).append(row // 10)
        assert sum(len(batches[step][0]) for step in range(len(batches))) == 10
    assert all(sorted(of_photo) == [0, 1] for of_photo in views.values())
    assert (view_schedule(10, SETTINGS)(1) == batches.rows).all()


def test_head_and_blocks_resume_bit_for_bit(
    tmp_path: Path,
    weights: Weights,
    uninterrupted: tuple[TrainedHead, Weights],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end, epochs = CheckpointCallback.on_epoch_end, list[tuple[str, int]]()

    def fail_at_times(self: CheckpointCallback, epoch: int, logs: Any = None) -> None:
        end(self, epoch, logs)
        epochs.append((self.stage.name, epoch))
        if len(epochs) in (2, 5):  # the head's second epoch, the blocks' second epoch
            raise MemoryError

    monkeypatch.setattr(CheckpointCallback, "on_epoch_end", fail_at_times)
    for _ in range(2):
        with pytest.raises(MemoryError):
            train_both(weights, tmp_path)
    trained, result = train_both(weights, tmp_path)
    assert epochs == [(stage, epoch) for stage in ("head", "block5") for epoch in range(3)]
    expected, expected_weights = uninterrupted
    assert trained.history == expected.history
    for name, tensor in expected_weights.tensors.items():
        np.testing.assert_array_equal(result.tensors[name], tensor)
