from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.common.errors import UserError
from train.finetune import compute_dtype, fine_tune, upper_blocks, view_schedule
from train.network.vgg import Weights, read_weights
from train.settings import Settings
from train.train_head import TrainedHead, predict, train_head
from train.trainer import Batches, Row, Tell, Watch

SETTINGS = Settings(
    epochs=3,
    batch=5,
    views=2,
    fine_tune="block5",
    fine_tune_views=2,
    fine_tune_epochs=3,
    fine_tune_batch=4,
    fine_tune_learning_rate=1e-4,
)
Split = tuple[NDArray[Any], NDArray[Any]]


def blobs(photos: int, views: int, seed: int) -> Split:
    """block4_pool features of two classes, in all photos' first view, then their second; of small photos."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(photos, dtype=np.int32) % 2, views)
    x = rng.gamma(0.3, 20.0, (len(labels), 4, 4, 512))
    for label in range(2):
        x[labels == label, :, :, label * 40 : label * 40 + 40] += 60.0
    return x.astype(np.float16), labels


TRAIN, VAL = blobs(10, 2, 0), blobs(6, 1, 1)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return read_weights()


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that were run, in order, the head's and the blocks'."""
    epochs: list[int] = []
    begin = Watch.on_epoch_begin

    def noted(self: Watch, epoch: int, logs: Any = None) -> None:
        epochs.append(epoch)
        begin(self, epoch, logs)

    monkeypatch.setattr(Watch, "on_epoch_begin", noted)
    return epochs


def tuned(
    kept: Path, weights: Weights, settings: Settings = SETTINGS, tell: Tell = lambda stage, row: None
) -> tuple[TrainedHead, Weights]:
    start = train_head(TRAIN, VAL, 2, settings, upper_blocks(weights, settings), kept, tell)
    return fine_tune(start, TRAIN, VAL, 2, weights, settings, kept, tell)


@pytest.fixture(scope="module")
def undisturbed(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedHead, Weights]:
    return tuned(tmp_path_factory.mktemp("kept") / "run", weights)


def test_block5_is_trained_on_and_the_rest_is_not(
    undisturbed: tuple[TrainedHead, Weights], weights: Weights
) -> None:
    fitted, result = undisturbed
    changed = {name for name, tensor in result.tensors.items() if (tensor != weights.tensors[name]).any()}
    assert changed == {f"block5_conv{conv}/{part}" for conv in (1, 2, 3) for part in ("kernel", "bias")}
    assert len(fitted.history) == 3 and fitted.history[-1]["loss"] < fitted.history[0]["loss"]
    assert {layer.compute_dtype for layer in fitted.blocks} == {"float32"}
    # What is kept is the epoch of the lowest validation loss, up to what bfloat16 rounds.
    said = predict(fitted.rest, predict(fitted.reduce, VAL[0]))
    loss = -np.log(said[np.arange(len(VAL[1])), VAL[1]]).mean()
    assert loss == pytest.approx(min(row["val_loss"] for row in fitted.history), rel=0.1, abs=0.01)


def test_a_small_class_can_be_weighted(tmp_path: Path, weights: Weights) -> None:
    rows = np.flatnonzero(np.tile([True, True, True, False, True, False, True, False, True, False], 2))
    uneven = TRAIN[0][rows], TRAIN[1][rows]  # of each view five photos of one class and one of the other
    losses = []
    for how in ("none", "balanced"):
        settings = replace(SETTINGS, epochs=1, fine_tune_epochs=1, class_weight=how)
        start = train_head(TRAIN, VAL, 2, settings, upper_blocks(weights, settings))
        fitted, _ = fine_tune(start, uneven, VAL, 2, weights, settings, tmp_path / how)
        losses.append(fitted.history[0]["loss"])
    assert losses[0] != pytest.approx(losses[1], rel=0.01)


def test_what_only_makes_it_worse_is_not_kept(
    weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    careless = replace(SETTINGS, fine_tune_learning_rate=100.0)
    start = train_head(TRAIN, VAL, 2, careless, upper_blocks(weights, careless))
    head = [array.copy() for layer in start.head for array in layer.get_weights()]
    fitted, result = fine_tune(start, TRAIN, VAL, 2, weights, careless)
    assert "no epoch was better on val than the head alone" in capsys.readouterr().out
    assert len(fitted.history) == 3
    for name, tensor in weights.tensors.items():
        np.testing.assert_array_equal(result.tensors[name], tensor)
    for before, after in zip(head, [a for layer in fitted.head for a in layer.get_weights()], strict=True):
        np.testing.assert_array_equal(before, after)


def test_without_fine_tuning_nothing_lies_between(weights: Weights) -> None:
    assert upper_blocks(weights, Settings()) == []
    assert [layer.name for layer in upper_blocks(weights, replace(SETTINGS, fine_tune="block4"))] == [
        f"block{block}_{layer}" for block in (4, 5) for layer in ("conv1", "conv2", "conv3", "pool")
    ]


def test_blocks_start_as_the_base(weights: Weights) -> None:
    blocks = upper_blocks(weights, SETTINGS, "float32")
    for layer in blocks:
        if layer.weights:
            np.testing.assert_array_equal(layer.get_weights()[0], weights.tensors[f"{layer.name}/kernel"])
    assert compute_dtype() in ("float32", "mixed_bfloat16")


def test_an_epoch_sees_each_photo_once_and_views_take_turns() -> None:
    seen: dict[int, list[int]] = {}
    batches = Batches(*TRAIN, 2, SETTINGS.fine_tune_batch, view_schedule(10, SETTINGS))
    for epoch in range(2):
        batches.begin(epoch)
        assert sorted(batches.rows % 10) == list(range(10))
        for row in batches.rows:
            seen.setdefault(row % 10, []).append(row // 10)
        assert sum(len(batches[step][0]) for step in range(len(batches))) == 10
    assert all(sorted(views) == [0, 1] for views in seen.values())
    assert (view_schedule(10, SETTINGS)(1) == batches.rows).all()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from train import epochs
import test_finetune
point, kept = sys.argv[2], Path(sys.argv[3])
steps = writes = 0
def die(): os.kill(os.getpid(), signal.SIGKILL)
end, sync = epochs.Watch.on_train_batch_end, os.fsync
def then_step(self, batch, logs=None):
    global steps
    end(self, batch, logs)
    steps += 1
    # The head has 4 steps in each of its 3 epochs, the blocks 3: in the second of either.
    if steps == {"head step": 6, "block step": 17}.get(point):
        die()
def then_write(number):
    global writes
    writes += 1
    # An epoch's state is written and not yet in its place: the head's second, the blocks' second.
    if writes == {"head write": 2, "block write": 5}.get(point):
        die()
    sync(number)
epochs.Watch.on_train_batch_end, os.fsync = then_step, then_write
test_finetune.tuned(kept, test_finetune.read_weights())
"""


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("head step", [1, 2, 0, 1, 2]),
        ("head write", [1, 2, 0, 1, 2]),
        ("block step", [1, 2]),
        ("block write", [1, 2]),
        ("", []),
    ],
)
def test_killed_it_goes_on_and_ends_the_same(
    point: str,
    left: list[int],
    tmp_path: Path,
    undisturbed: tuple[TrainedHead, Weights],
    weights: Weights,
    ran: list[int],
) -> None:
    kept = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), point, str(kept)]
    assert subprocess.run(command, timeout=300).returncode == (-signal.SIGKILL if point else 0)

    told: list[tuple[str, Row]] = []
    fitted, result = tuned(kept, weights, tell=lambda stage, row: told.append((stage, row)))
    assert [row for stage, row in told if stage == "block5"] == fitted.history, "those before too"
    assert [stage for stage, _ in told] == ["head"] * SETTINGS.epochs + ["block5"] * 3
    assert ran == left, "whole epochs are not run again"
    expected, expected_weights = undisturbed
    assert fitted.history == expected.history
    for name, tensor in expected_weights.tensors.items():
        np.testing.assert_array_equal(result.tensors[name], tensor)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, weights: Weights) -> None:
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\); make room"):
        tuned(tmp_path / "gone" / "run", weights, replace(SETTINGS, fine_tune_epochs=1))


def test_what_is_kept_of_other_settings_or_damaged_is_passed_over(
    tmp_path: Path, weights: Weights, ran: list[int]
) -> None:
    kept = tmp_path / "run"
    one = replace(SETTINGS, epochs=1, fine_tune_epochs=1)
    tuned(kept, weights, one)
    tuned(kept, weights, one)
    assert ran == [0, 0], "both were whole"
    tuned(kept, weights, replace(one, seed=1))
    assert ran == [0] * 4
    state = kept / "block5.npz"
    state.write_bytes(state.read_bytes()[:-1000])
    tuned(kept, weights, replace(one, seed=1))
    assert ran == [0] * 5
