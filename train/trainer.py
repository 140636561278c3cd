"""The training loop, with a checkpoint after every epoch.

All training uses it: train/train_head.py, train/finetune.py and train/compress/distillation.py compile a
model and call `train_epochs`. A killed run resumes after its last complete epoch and ends with the same
weights, bit for bit: the order of photos depends on the seed and the epoch number alone, and the checkpoint
holds every variable that an epoch changes.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from runtime.common.atomic import atomic_write
from runtime.common.errors import UserError
from train.distributed import ProcessShard
from train.features.store import FeatureStore
from train.progress import Progress
from train.settings import Settings

FeatureArray = FeatureStore | NDArray[Any]
Split = tuple[FeatureArray, NDArray[Any]]  # features [N, …] and class indices [N]; negatives come last
EpochMetrics = Mapping[str, float]  # "epoch", "loss", "accuracy", "val_loss", "val_accuracy"
EpochCallback = Callable[[str, EpochMetrics], object]  # gets the stage's name and an epoch's metrics
EpochOrder = Callable[[int], NDArray[np.intp]]  # epoch number from 0 → rows in training order
EVALUATION_BATCH = 128
# Negatives learn the uniform distribution over the classes: outlier exposure (Hendrycks, Mazeika & others,
# "Deep Anomaly Detection with Outlier Exposure", 2019). The paper weights their mean loss by 0.5. An epoch
# with half as many negatives as photos has the same effect, if each negative weighs as much as a photo. Fewer
# negatives have less effect, so a few of them cannot displace the classes.
NEGATIVES_PER_PHOTO = 0.5
NEGATIVE_WEIGHT = 1.0


def ignore_epoch(stage: str, metrics: EpochMetrics) -> None:
    """The default EpochCallback."""


@dataclass(frozen=True)
class Stage:
    """A training stage: its name, its length, its checkpoint and its callback.

    `checkpoint_dir` holds the checkpoint `NAME.npz`, which resumes a run with the same `fingerprint`; the
    caller deletes the folder. `on_epoch` also gets the epochs that a resumed run skips.
    """

    name: str
    epochs: int
    checkpoint_dir: Path | None = None
    fingerprint: str = ""
    on_epoch: EpochCallback = ignore_epoch


@dataclass(frozen=True)
class TrainingHistory:
    """The metrics of each epoch, and whether Ctrl-C ended training early."""

    epochs: Sequence[EpochMetrics]
    interrupted: bool


def train_epochs(model: keras.Model, train: Batches, val: Batches, stage: Stage) -> TrainingHistory:
    """Train a compiled model and leave it with the weights of its best epoch.

    The best epoch has the lowest loss on `val`, or on `train` when `val` is empty. `val` holds photos of the
    classes alone: negatives would choose an epoch by how flat its probabilities are, but the detector of
    unknown pictures is fitted after training and has its own threshold. Raises UserError when the checkpoint
    cannot be written, features cannot be read, or the loss of the first epoch is not finite.
    """
    model.optimizer.build(model.trainable_variables)
    path = stage.checkpoint_dir / f"{stage.name}.npz" if stage.checkpoint_dir else None
    checkpoint = Checkpoint(model, path, stage.fingerprint)
    checkpoint.restore()
    for metrics in checkpoint.history:
        stage.on_epoch(stage.name, metrics)
    done = len(checkpoint.history)
    interrupted = False
    with Progress(stage.name, stage.epochs * len(train), "steps") as progress:
        progress.step(done * len(train))
        try:
            if done < stage.epochs:
                with read_errors(train, val):
                    model.fit(
                        train,
                        validation_data=val if len(val) else None,
                        initial_epoch=done,
                        epochs=stage.epochs,
                        shuffle=False,  # Batches shuffles
                        callbacks=[CheckpointCallback(checkpoint, train, progress, stage)],
                        verbose=0,
                    )
        except KeyboardInterrupt:
            interrupted = True
    if checkpoint.best_weights:
        model.set_weights(checkpoint.best_weights)
    return TrainingHistory(checkpoint.history, interrupted)


@contextmanager
def read_errors(*batches: Batches) -> Iterator[None]:
    """Raises the UserError of features that cannot be read, of which TensorFlow makes an error of its own."""
    try:
        yield
    except Exception:
        for error in filter(None, (each.error for each in batches)):
            raise error from None
        raise


def training_fingerprint(settings: Settings, train: Split, val: Split) -> str:
    """A hash of everything that training depends on: settings, labels and the names of the feature files,
    which contain the hashes of photos and weights.
    """
    digest = hashlib.sha256(json.dumps(asdict(settings)).encode())
    for features, labels in (train, val):
        digest.update(np.ascontiguousarray(labels).tobytes())
        if isinstance(features, FeatureStore):
            digest.update("".join("/".join(file.parts[-3:]) for file in features.files).encode())
    return digest.hexdigest()


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of features float32 [batch_size, …] and one-hot classes, uniform for negatives.

    `epoch_order` returns the rows of an epoch; without it, all rows in their order. With a `shard`, a batch
    holds the rows of this process, and rows that do not divide evenly among all devices are left out.
    `class_weight` maps class indices to the weight of their photos in the loss; a batch then has a third
    part, the weights [batch_size]. `error` is set when features cannot be read.
    """

    error: UserError | None = None

    def __init__(
        self,
        features: FeatureArray,
        labels: NDArray[Any],
        classes: int,
        batch_size: int = EVALUATION_BATCH,
        epoch_order: EpochOrder | None = None,
        shard: ProcessShard | None = None,
        class_weight: Mapping[int, float] | None = None,
    ) -> None:
        super().__init__()
        self.features, self.labels = features, labels
        # By class index: the last row is that of NEGATIVE, which is -1.
        self.targets = np.concatenate([np.eye(classes), np.full((1, classes), 1 / classes)], dtype=np.float32)
        self.weights: NDArray[np.float32] | None = None
        if class_weight:
            weights = [class_weight.get(index, 0.0) for index in range(classes)]
            self.weights = np.array([*weights, NEGATIVE_WEIGHT], np.float32)
        self.shard = shard or ProcessShard()
        self.batch_size = max(batch_size // self.shard.devices, 1) * self.shard.devices
        self.epoch_order = epoch_order or (lambda epoch: np.arange(len(labels)))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        rows = self.epoch_order(epoch)
        self.rows = rows[: len(rows) // self.shard.devices * self.shard.devices]

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, step: int) -> tuple[NDArray[Any], ...]:
        rows = self.rows[step * self.batch_size : (step + 1) * self.batch_size]
        rows = rows[self.shard.process :: self.shard.processes]
        labels = self.labels[rows]
        try:
            batch = self.features[rows].astype(np.float32), self.targets[labels]
        except UserError as error:
            self.error = error
            raise
        return batch if self.weights is None else (*batch, self.weights[labels])


def with_negatives(photo_order: EpochOrder, first: int, negatives: int, seed: int) -> EpochOrder:
    """The order of photos with negatives among them, NEGATIVES_PER_PHOTO for each photo at most.

    The rows of the `negatives` begin at row `first`. Each epoch draws other ones; the seed and the epoch
    decide which. Without negatives the order is `photo_order`.
    """
    if not negatives:
        return photo_order

    def epoch_order(epoch: int) -> NDArray[np.intp]:
        photos, rng = photo_order(epoch), np.random.default_rng([seed, epoch, 2])
        drawn = first + rng.permutation(negatives)[: negatives_per_epoch(len(photos), negatives)]
        return rng.permutation(np.concatenate([photos, drawn]))

    return epoch_order


def negatives_per_epoch(photos: int, negatives: int) -> int:
    """The number of negatives that an epoch of so many photos draws."""
    return min(int(NEGATIVES_PER_PHOTO * photos), negatives)


class PhotoAccuracy(keras.metrics.CategoricalAccuracy):  # type: ignore[misc]
    """The share of photos whose class has the highest probability; negatives have no class."""

    def __init__(self) -> None:
        super().__init__(name="accuracy")

    def update_state(self, targets: Any, probabilities: Any, sample_weight: Any = None) -> None:
        # The target of a photo is 1 for its class, that of a negative at most a half.
        has_class = keras.ops.max(targets, axis=-1) > 0.75
        super().update_state(targets, probabilities, keras.ops.cast(has_class, "float32"))


class CheckpointCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Sets the epoch's order of photos, shows progress, and saves a checkpoint after each epoch."""

    def __init__(self, checkpoint: Checkpoint, train: Batches, progress: Progress, stage: Stage) -> None:
        super().__init__()
        self.checkpoint, self.train, self.progress, self.stage = checkpoint, train, progress, stage
        self.last_epoch = ""

    def on_epoch_begin(self, epoch: int, logs: EpochMetrics | None = None) -> None:
        self.train.set_epoch(epoch)

    def on_train_batch_end(self, batch: int, logs: EpochMetrics | None = None) -> None:
        first_epoch = f"epoch 1 of {self.stage.epochs}, loss {(logs or {}).get('loss', 0):.3f}"
        self.progress.step(1, self.last_epoch or first_epoch)

    def on_epoch_end(self, epoch: int, logs: EpochMetrics | None = None) -> None:
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        if not epoch and not math.isfinite(metrics.get("val_loss", metrics["loss"])):
            flag = f"--{'fine-tune-' if self.stage.name.startswith('block') else ''}learning-rate"
            raise UserError(f"{self.stage.name}: the loss is not a number; lower {flag}")
        self.checkpoint.save({"epoch": epoch + 1.0, **metrics})
        self.stage.on_epoch(self.stage.name, self.checkpoint.history[-1])
        values = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        self.last_epoch = f"epoch {epoch + 1} of {self.stage.epochs}, {values}"
        self.progress.step(0, self.last_epoch)


class Checkpoint:
    """Everything that an epoch changes: the model's and the optimizer's variables, the weights of the best
    epoch, and the metrics of each epoch.
    """

    def __init__(self, model: keras.Model, path: Path | None, fingerprint: str) -> None:
        self.model, self.path, self.fingerprint = model, path, fingerprint
        self.best_weights: list[NDArray[Any]] = []
        self.history: list[EpochMetrics] = []

    def restore(self) -> None:
        """Load the file, unless it is missing, damaged, or has another fingerprint."""
        if self.path is None:
            return
        try:
            with np.load(self.path) as file:
                if str(file["fingerprint"]) != self.fingerprint:
                    print(f"{self.path.stem}: starts again, because a setting or the photos have changed")
                    return
                history = json.loads(str(file["history"]))
                saved = {
                    group: [file[name] for name in sorted(file) if name.startswith(group)]
                    for group in ("model", "optimizer", "best")
                }
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return
        # `variables` and not `weights`: the state of dropout's random seeds is a variable, not a weight.
        for group, variables in (
            ("model", self.model.variables),
            ("optimizer", self.model.optimizer.variables),
        ):
            for variable, value in zip(variables, saved[group], strict=True):
                variable.assign(value)
        self.history, self.best_weights = history, saved["best"]

    def save(self, metrics: EpochMetrics) -> None:
        """Add an epoch and write the file. Raises UserError when it cannot be written."""
        self.history.append(metrics)
        loss = "val_loss" if "val_loss" in metrics else "loss"
        if metrics[loss] <= min(epoch[loss] for epoch in self.history):
            self.best_weights = self.model.get_weights()
        if self.path is None:
            return
        groups: dict[str, Sequence[Any]] = {
            "model": self.model.variables,
            "optimizer": self.model.optimizer.variables,
            "best": self.best_weights,
        }
        arrays = {
            f"{group}{number:03}": keras.ops.convert_to_numpy(value)
            for group, values in groups.items()
            for number, value in enumerate(values)
        }
        try:
            self.path.parent.mkdir(exist_ok=True)
            with atomic_write(self.path) as file:
                np.savez(file, fingerprint=self.fingerprint, history=json.dumps(self.history), **arrays)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror or error}); free some disk space, then "
                "run the same command with --resume"
            ) from None
