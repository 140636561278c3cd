"""The training loop and its checkpoints, on a model of two Dense layers."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from runtime.common.errors import UserError
from tests.helpers import ROOT
from tests.interrupt import press_ctrl_c_after_epoch
from train.data.class_weights import NEGATIVE
from train.features.store import FeatureLayout, FeatureStore, write_feature
from train.train_head import make_deterministic
from train.trainer import (
    Batches,
    CheckpointCallback,
    EpochCallback,
    EpochMetrics,
    PhotoAccuracy,
    Stage,
    TrainingHistory,
    ignore_epoch,
    train_epochs,
    with_negatives,
)

Trained = tuple[TrainingHistory, keras.Model]
EPOCHS = 4
ROWS = np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32)
LABELS = (ROWS[:, 0] > 0).astype(np.int32)


def small_model() -> keras.Model:
    """A model with dropout, whose random state a checkpoint has to hold too."""
    make_deterministic(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dropout(0.5, seed=0),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.AdamW(1e-2), "categorical_crossentropy", metrics=["accuracy"])
    return model


def shuffled_batches() -> Batches:
    return Batches(ROWS, LABELS, 2, 8, lambda epoch: np.random.default_rng(epoch).permutation(len(ROWS)))


def train_small(
    checkpoint_dir: Path | None, fingerprint: str = "a", on_epoch: EpochCallback = ignore_epoch
) -> Trained:
    model = small_model()
    stage = Stage("head", EPOCHS, checkpoint_dir, fingerprint, on_epoch)
    return train_epochs(model, shuffled_batches(), Batches(ROWS, LABELS, 2), stage), model


@pytest.fixture(scope="module")
def uninterrupted() -> Trained:
    return train_small(None)


@pytest.fixture
def epochs_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of each epoch that is trained and not restored."""
    epochs: list[int] = []
    begin = CheckpointCallback.on_epoch_begin

    def record(self: CheckpointCallback, epoch: int, logs: Any = None) -> None:
        epochs.append(epoch)
        begin(self, epoch, logs)

    monkeypatch.setattr(CheckpointCallback, "on_epoch_begin", record)
    return epochs


def assert_same(resumed: Trained, expected: Trained) -> None:
    assert list(resumed[0].epochs) == list(expected[0].epochs)
    for one, other in zip(resumed[1].get_weights(), expected[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
sync, writes = os.fsync, 0
def fsync(number):
    global writes
    writes += 1
    if writes == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(number)
os.fsync = fsync
import test_trainer
test_trainer.train_small(Path(sys.argv[3]))
"""


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_bit_for_bit(
    tmp_path: Path, uninterrupted: Trained, epochs_run: list[int]
) -> None:
    folder = tmp_path / "checkpoints"
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(ROOT), str(Path(__file__).parent), str(folder)]
    assert subprocess.run(command, timeout=300, capture_output=True).returncode == -signal.SIGKILL
    reported: list[tuple[str, EpochMetrics]] = []
    resumed = train_small(folder, on_epoch=lambda *epoch: reported.append(epoch))
    assert epochs_run == [2, 3], "complete epochs do not run again"
    assert_same(resumed, uninterrupted)
    assert reported == [("head", metrics) for metrics in resumed[0].epochs], "restored epochs are reported"


def test_a_run_killed_within_an_epoch_repeats_that_epoch(
    tmp_path: Path,
    uninterrupted: Trained,
    epochs_run: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = 0

    def fail_in_the_third_epoch(self: CheckpointCallback, batch: int, logs: Any = None) -> None:
        nonlocal steps
        steps += 1
        if steps == 8:
            raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(CheckpointCallback, "on_train_batch_end", fail_in_the_third_epoch)
        train_small(tmp_path)
    assert_same(train_small(tmp_path), uninterrupted)
    assert epochs_run == [0, 1, 2, 2, 3]


@pytest.mark.parametrize("missing", [0, -1])  # a photo of train, one of val
def test_features_that_another_command_deleted_are_one_error(tmp_path: Path, missing: int) -> None:
    files = tuple(tmp_path / f"{number}.npy" for number in range(len(ROWS)))
    for file, row in zip(files, ROWS, strict=True):
        write_feature(file, row.astype(np.float16))
    layout = FeatureLayout((1, 1, 6), ())
    train, val = (
        Batches(FeatureStore(files[half], layout), LABELS[half], 2) for half in (slice(12), slice(12, None))
    )
    files[missing].unlink()
    model = keras.Sequential([keras.Input((1, 1, 6)), keras.layers.Flatten(), *small_model().layers])
    model.compile(keras.optimizers.AdamW(1e-2), "categorical_crossentropy")
    with pytest.raises(UserError, match=r"\.npy: was deleted during this run; .*--resume"):
        train_epochs(model, train, val, Stage("block5", 1))


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_ignored(
    tmp_path: Path, epochs_run: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    train_small(tmp_path)
    train_small(tmp_path)
    assert len(epochs_run) == EPOCHS, "the second call restores all epochs"
    assert "starts again" not in capsys.readouterr().out
    train_small(tmp_path, fingerprint="b")
    assert len(epochs_run) == 2 * EPOCHS
    assert "head: starts again" in capsys.readouterr().out
    checkpoint = tmp_path / "head.npz"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    train_small(tmp_path, fingerprint="b")
    assert len(epochs_run) == 3 * EPOCHS


def test_a_checkpoint_that_cannot_be_written_raises_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone/run/head\.npz.*No such file or directory.*--resume"):
        train_small(tmp_path / "gone" / "run")


def test_the_weights_of_the_epoch_with_the_lowest_loss_stay() -> None:
    model = small_model()
    wrong = Batches(ROWS, 1 - LABELS, 2)  # the better the model fits ROWS, the higher its loss here
    trained = train_epochs(model, shuffled_batches(), wrong, Stage("head", EPOCHS))
    losses = [epoch["val_loss"] for epoch in trained.epochs]
    assert losses == sorted(losses) and losses[-1] > losses[0]
    assert model.evaluate(wrong, verbose=0, return_dict=True)["loss"] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("stage", "flag"), [("head", "--learning-rate"), ("block5", "--fine-tune-learning-rate")]
)
@pytest.mark.parametrize("val_rows", [0, 24])
def test_a_loss_that_is_not_a_number_is_an_error(stage: str, flag: str, val_rows: int) -> None:
    model = small_model()
    model.compile(keras.optimizers.SGD(1e38), "categorical_crossentropy")
    val = Batches(ROWS[:val_rows], LABELS[:val_rows], 2)
    with pytest.raises(UserError, match=f"{stage}: the loss is not a number; lower {flag}"):
        train_epochs(model, shuffled_batches(), val, Stage(stage, 2))


def test_without_validation_rows_the_training_loss_decides() -> None:
    model = small_model()
    trained = train_epochs(model, shuffled_batches(), Batches(ROWS[:0], LABELS[:0], 2), Stage("head", 2))
    assert "val_loss" not in trained.epochs[0]


def test_ctrl_c_ends_training_with_the_best_weights_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    press_ctrl_c_after_epoch(2, monkeypatch)
    model = small_model()
    val = Batches(ROWS, LABELS, 2)
    trained = train_epochs(model, shuffled_batches(), val, Stage("head", 1000))
    assert trained.interrupted and 3 <= len(trained.epochs) < 10
    lowest = min(epoch["val_loss"] for epoch in trained.epochs)
    assert model.evaluate(val, verbose=0, return_dict=True)["loss"] == pytest.approx(lowest, rel=1e-5)


def test_class_weights_change_the_loss() -> None:
    losses = []
    for class_weight in (None, {0: 1.0, 1: 5.0}):
        train = Batches(ROWS, LABELS, 2, 8, class_weight=class_weight)
        trained = train_epochs(small_model(), train, Batches(ROWS, LABELS, 2), Stage("head", 1))
        losses.append(trained.epochs[0]["loss"])
    assert losses[1] > 1.5 * losses[0]


def test_negatives_have_a_uniform_target_and_the_weight_of_a_photo() -> None:
    labels = np.array([1, 0, NEGATIVE])
    _, targets, weights = Batches(ROWS[:3], labels, 2, class_weight={0: 3.0, 1: 0.6})[0]
    np.testing.assert_array_equal(targets, [[0, 1], [1, 0], [0.5, 0.5]])
    np.testing.assert_allclose(weights, [0.6, 3, 1])


def test_each_epoch_draws_other_negatives_and_at_most_half_as_many_as_photos() -> None:
    photo_order = lambda epoch: np.arange(10)  # noqa: E731
    order = with_negatives(photo_order, 10, 40, seed=3)
    drawn = []
    for epoch in range(2):
        rows = order(epoch)
        assert sorted(rows[rows < 10]) == list(range(10))
        drawn.append(set(rows[rows >= 10]))
        assert len(drawn[-1]) == 5 and max(drawn[-1]) < 50
        assert (rows[:10] >= 10).any(), "negatives are among the photos, not after them"
        np.testing.assert_array_equal(order(epoch), rows)
    assert drawn[0] != drawn[1]
    assert sorted(with_negatives(photo_order, 10, 3, seed=3)(0)) == list(range(13))
    assert with_negatives(photo_order, 10, 0, seed=3) is photo_order


def test_the_accuracy_leaves_negatives_out() -> None:
    accuracy = PhotoAccuracy()
    targets = np.array([[1, 0], [1, 0], [0, 1], [0.5, 0.5]], np.float32)
    accuracy.update_state(targets, np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.1, 0.9]], np.float32))
    assert float(accuracy.result()) == pytest.approx(2 / 3)
