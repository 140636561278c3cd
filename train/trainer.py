"""Train a model for some epochs, so that a run which was killed goes on from its last whole epoch and ends
as if it had not been: the order of photos is drawn from the seed and the epoch alone, and all that an epoch
leaves behind is kept on disk.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from runtime.common.atomic import atomic
from runtime.common.errors import UserError
from train.distributed import ProcessShard
from train.features.extraction import FeatureStore
from train.progress import Progress
from train.settings import Settings

Array = FeatureStore | NDArray[Any]
Row = Mapping[str, float]
Tell = Callable[[str, Row], object]  # is given the stage and each epoch's figures as it ends
WHOLE_SPLIT = 128  # photos a step where nothing is learned from them


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Features [N, …] and class indices [N], float32 and one-hot, `size` at a time.

    `order` gives the rows of an epoch, by its number from 0; without it, every row in its place. With a
    `share`, of each batch that process's rows, and as many of all rows as its devices share evenly.
    """

    def __init__(
        self,
        features: Array,
        labels: NDArray[Any],
        classes: int,
        size: int = WHOLE_SPLIT,
        order: Callable[[int], NDArray[np.intp]] | None = None,
        share: ProcessShard | None = None,
    ) -> None:
        super().__init__()
        self.features, self.labels, self.classes = features, labels, classes
        self.share = share or ProcessShard()
        self.size = max(size // self.share.devices, 1) * self.share.devices
        self.order = order or (lambda epoch: np.arange(len(labels)))
        self.begin(0)

    def begin(self, epoch: int) -> None:
        rows = self.order(epoch)
        self.rows = rows[: len(rows) // self.share.devices * self.share.devices]

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __getitem__(self, step: int) -> tuple[NDArray[Any], NDArray[Any]]:
        rows = self.rows[step * self.size : (step + 1) * self.size]
        rows = rows[self.share.process :: self.share.processes]
        return self.features[rows].astype(np.float32), keras.utils.to_categorical(
            self.labels[rows], self.classes
        )


def train_epochs(
    model: keras.Model,
    train: Batches,
    val: Batches,
    epochs: int,
    stage: str,
    kept: Path | None = None,
    fingerprint: str = "",
    class_weight: Mapping[int, float] | None = None,
    tell: Tell = lambda stage, row: None,
) -> tuple[list[Row], bool]:
    """Train the compiled `model`; returns each epoch's figures, and whether Ctrl-C cut it short.

    It is left with the weights of the epoch that had the lowest loss on `val`, or on `train` when `val` is
    empty. `kept` is the folder that holds what a `stage` goes on from, if its `fingerprint` is the same;
    whoever calls removes it in the end. `class_weight` says how much a photo of each class counts in
    training; `tell` is given every epoch, those that it goes on from too. Raises UserError when `kept` cannot
    be written.
    """
    model.optimizer.build(model.trainable_variables)
    state = _State(model, kept / f"{stage}.npz" if kept else None, fingerprint)
    state.read()
    for row in state.rows:
        tell(stage, row)
    with Progress(stage, epochs * len(train), "steps") as progress:
        progress.step(len(state.rows) * len(train))
        watch = Watch(state, train, progress, epochs, lambda row: tell(stage, row))
        stopped = False
        try:
            if len(state.rows) < epochs:
                model.fit(
                    train,
                    validation_data=val if len(val) else None,
                    initial_epoch=len(state.rows),
                    epochs=epochs,
                    shuffle=False,  # `order` does
                    class_weight=class_weight,
                    callbacks=[watch],
                    verbose=0,
                )
        except KeyboardInterrupt:
            stopped = True
    if state.best:
        model.set_weights(state.best)
    return state.rows, stopped


def fingerprint_of(
    settings: Settings, train: tuple[Array, NDArray[Any]], val: tuple[Array, NDArray[Any]]
) -> str:
    """Of all that epochs depend on: settings, labels, and the features' names, which say what they are of."""
    digest = hashlib.sha256(json.dumps(asdict(settings)).encode())
    for features, labels in (train, val):
        digest.update(np.ascontiguousarray(labels).tobytes())
        if isinstance(features, FeatureStore):
            digest.update("".join("/".join(file.parts[-3:]) for file in features.files).encode())
    return digest.hexdigest()


class Watch(keras.callbacks.Callback):  # type: ignore[misc]
    """What is done beside training: the epoch's order, the progress, the state."""

    def __init__(
        self, state: _State, train: Batches, progress: Progress, epochs: int, tell: Callable[[Row], object]
    ) -> None:
        super().__init__()
        self.state, self.train, self.progress, self.epochs = state, train, progress, epochs
        self.tell, self.told = tell, ""

    def on_epoch_begin(self, epoch: int, logs: Row | None = None) -> None:
        self.train.begin(epoch)

    def on_train_batch_end(self, batch: int, logs: Row | None = None) -> None:
        self.progress.step(
            1, self.told or f"epoch 1 of {self.epochs}, loss {(logs or {}).get('loss', 0):.3f}"
        )

    def on_epoch_end(self, epoch: int, logs: Row | None = None) -> None:
        row = {name: float(value) for name, value in (logs or {}).items()}
        self.state.write({"epoch": epoch + 1.0, **row})
        self.tell(self.state.rows[-1])
        figures = ", ".join(f"{name} {value:.3f}" for name, value in row.items())
        self.told = f"epoch {epoch + 1} of {self.epochs}, {figures}"
        self.progress.step(0, self.told)


class _State:
    """What a whole epoch leaves behind: variables, the optimizer's own, the best weights, the history."""

    def __init__(self, model: keras.Model, path: Path | None, fingerprint: str) -> None:
        self.model, self.path, self.fingerprint = model, path, fingerprint
        self.best: list[NDArray[Any]] = []
        self.rows: list[Row] = []

    def read(self) -> None:
        """Take up what is kept; nothing, when it is of other photos or settings, or damaged."""
        if self.path is None:
            return
        try:
            with np.load(self.path) as file:
                if str(file["fingerprint"]) != self.fingerprint:
                    return
                rows = json.loads(str(file["rows"]))
                found = {kind: _arrays(file, kind) for kind in ("now", "optimizer", "best")}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return
        # The seeds of dropout are variables too, and none of the weights.
        for kind, variables in (("now", self.model.variables), ("optimizer", self.model.optimizer.variables)):
            for variable, value in zip(variables, found[kind], strict=True):
                variable.assign(value)
        self.rows, self.best = rows, found["best"]

    def write(self, row: Row) -> None:
        self.rows.append(row)
        name = "val_loss" if "val_loss" in row else "loss"
        if row[name] <= min(before[name] for before in self.rows):
            self.best = self.model.get_weights()
        if self.path is None:
            return
        kinds: dict[str, Sequence[Any]] = {
            "now": self.model.variables,
            "optimizer": self.model.optimizer.variables,
            "best": self.best,
        }
        arrays = {
            f"{kind}{number:03}": keras.ops.convert_to_numpy(value)
            for kind, values in kinds.items()
            for number, value in enumerate(values)
        }
        try:
            self.path.parent.mkdir(exist_ok=True)
            with atomic(self.path) as file:
                np.savez(file, fingerprint=self.fingerprint, rows=json.dumps(self.rows), **arrays)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror or error}); make room there, then --resume"
            ) from None


def _arrays(file: Mapping[str, NDArray[Any]], kind: str) -> list[NDArray[Any]]:
    return [file[name] for name in sorted(file) if name.startswith(kind)]
