"""Train the last blocks of the base on, with the head, at a low learning rate.

Each epoch sees every training photo once, in the next of its views. The order is drawn from the seed and the
epoch alone, and all that an epoch leaves behind is kept on disk: a run that was killed goes on from its last
whole epoch and ends as if it had not been.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from runtime.errors import UserError
from train.backbone import Weights, block_layers
from train.fit import Array, Fitted, deterministic
from train.progress import Progress
from train.settings import TRAINED_FROM, Settings

WARM_UP = 0.1  # of the steps: Adam's first estimates are poor, and the blocks are good as they are
BF16 = {"avx512_bf16", "amx_bf16"}  # what a CPU says that multiplies bfloat16 in hardware, at twice the pace


def upper_blocks(weights: Weights, settings: Settings, dtype: str | None = None) -> list[keras.layers.Layer]:
    """The blocks that are trained on, with the base's weights; none without --fine-tune.

    They compute in `dtype`, or in what is quick here.
    """
    first = TRAINED_FROM[settings.fine_tune]
    layers = block_layers(first, 5, dtype or compute_dtype(), trainable=True) if first <= 5 else []
    channels = 512 if first == 5 else 256
    for layer in layers:
        layer.build((None, None, None, channels))
        if layer.weights:
            channels = layer.filters
            layer.set_weights([weights.tensors[f"{layer.name}/{part}"] for part in ("kernel", "bias")])
    return layers


def compute_dtype() -> str:
    """bfloat16 on a GPU, or a CPU that has it: float32's range, so that no loss needs scaling."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    gpu = bool(keras.distribution.list_devices("gpu"))
    return "mixed_bfloat16" if gpu or flags & BF16 else "float32"


def fine_tune(
    start: Fitted,
    train: tuple[Array, NDArray[Any]],
    val: tuple[Array, NDArray[Any]],
    classes: int,
    weights: Weights,
    settings: Settings,
    kept: Path,
) -> tuple[Fitted, Weights]:
    """Go on from `start`, whose blocks are `upper_blocks`; returns the result in float32, and its weights.

    `train` holds settings.fine_tune_views views of its photos, all photos' first view, then all their second.
    The weights kept are those of the epoch with the lowest loss on `val`. `kept` is the file that an
    interrupted run goes on from; whoever calls removes it in the end.
    """
    deterministic(settings.seed)
    model = keras.Sequential([keras.Input(train[0].shape[1:]), *start.blocks, *start.head])
    photos = len(train[1]) // settings.fine_tune_views
    steps = -(-photos // settings.fine_tune_batch)
    total = settings.fine_tune_epochs * steps
    warm = max(1, round(WARM_UP * total))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, total - warm), warmup_target=settings.fine_tune_learning_rate, warmup_steps=warm
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=settings.weight_decay),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=settings.label_smoothing),
        metrics=["accuracy"],
        # XLA on top of mixed precision and several devices has crashed (keras issue 21366).
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)
    state = _State(model, kept, _fingerprint(train, val, weights, settings))
    rows, stopped = state.read(), False
    with Progress(settings.fine_tune, total, "steps") as progress:
        progress.step(len(rows) * steps)
        try:
            for epoch in range(len(rows), settings.fine_tune_epochs):
                batches = _Batches(*train, classes, settings, epoch)
                told = _Steps(progress, f"epoch {epoch + 1} of {settings.fine_tune_epochs}")
                logs = model.fit(batches, epochs=1, shuffle=False, verbose=0, callbacks=[told]).history
                row = {"epoch": epoch + 1.0, **{name: values[-1] for name, values in logs.items()}}
                if len(val[1]):
                    measured = model.evaluate(_Whole(*val, classes), verbose=0, return_dict=True)
                    row |= {f"val_{name}": value for name, value in measured.items()}
                rows.append({name: float(value) for name, value in row.items()})
                state.write(rows)
                progress.step(0, ", ".join(f"{n} {v:.3f}" for n, v in rows[-1].items() if n != "epoch"))
        except KeyboardInterrupt:
            stopped = True
    if state.best:
        model.set_weights(state.best)
    tuned = {
        f"{layer.name}/{part}": np.asarray(value, np.float32)
        for layer in start.blocks
        if layer.weights
        for part, value in zip(("kernel", "bias"), layer.get_weights(), strict=True)
    }
    result = Weights({**weights.tensors, **tuned}, weights.sha256, weights.source)
    blocks = upper_blocks(result, settings, "float32")
    reduce = keras.Sequential([keras.Input(train[0].shape[1:]), *blocks, start.head[0]])
    return Fitted(blocks, start.head, reduce, start.rest, rows, stopped), result


class _Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """One epoch: every photo once, in an order drawn from the seed and the epoch."""

    def __init__(
        self, features: Array, labels: NDArray[Any], classes: int, settings: Settings, epoch: int
    ) -> None:
        super().__init__()
        photos = len(labels) // settings.fine_tune_views
        chance = np.random.default_rng(settings.seed)
        first = chance.integers(0, settings.fine_tune_views, photos)
        view = (first + epoch) % settings.fine_tune_views
        order = np.random.default_rng([settings.seed, epoch]).permutation(photos)
        self.rows = (view * photos + np.arange(photos))[order]
        self.features, self.labels, self.classes = features, labels, classes
        self.size = settings.fine_tune_batch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __getitem__(self, step: int) -> tuple[NDArray[Any], NDArray[Any]]:
        rows = self.rows[step * self.size : (step + 1) * self.size]
        return self.features[rows].astype(np.float32), keras.utils.to_categorical(
            self.labels[rows], self.classes
        )


class _Whole(_Batches):
    """A split, in its order."""

    def __init__(self, features: Array, labels: NDArray[Any], classes: int) -> None:
        keras.utils.PyDataset.__init__(self)
        self.rows = np.arange(len(labels))
        self.features, self.labels, self.classes, self.size = features, labels, classes, 128


class _Steps(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, progress: Progress, note: str) -> None:
        super().__init__()
        self.progress, self.note = progress, note

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        loss = (logs or {}).get("loss", float("nan"))
        self.progress.step(1, f"{self.note}, loss {loss:.3f}")


class _State:
    """What a whole epoch leaves behind: weights, the optimizer's variables, the best weights, the history."""

    def __init__(self, model: keras.Model, path: Path, fingerprint: str) -> None:
        self.model, self.path, self.fingerprint = model, path, fingerprint
        self.best: list[NDArray[Any]] = []

    def read(self) -> list[dict[str, float]]:
        """The epochs done; none when nothing is kept, or it is of other photos, settings or weights."""
        try:
            with np.load(self.path) as file:
                if str(file["fingerprint"]) != self.fingerprint:
                    return []
                rows: list[dict[str, float]] = json.loads(str(file["rows"]))
                found = {kind: self._arrays(file, kind) for kind in ("now", "optimizer", "best")}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return []
        self.model.set_weights(found["now"])
        for variable, value in zip(self.model.optimizer.variables, found["optimizer"], strict=True):
            variable.assign(value)
        self.best = found["best"]
        return rows

    def write(self, rows: Sequence[Mapping[str, float]]) -> None:
        name = "val_loss" if "val_loss" in rows[-1] else "loss"
        if rows[-1][name] <= min(row[name] for row in rows):
            self.best = self.model.get_weights()
        kinds = {
            "now": self.model.get_weights(),
            "optimizer": [np.asarray(variable) for variable in self.model.optimizer.variables],
            "best": self.best,
        }
        arrays = {f"{kind}{i:03}": value for kind, values in kinds.items() for i, value in enumerate(values)}
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                np.savez(file, fingerprint=self.fingerprint, rows=json.dumps(rows), **arrays)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror or error}); make room there, then --resume"
            ) from None
        finally:
            partial.unlink(missing_ok=True)

    @staticmethod
    def _arrays(file: Mapping[str, NDArray[Any]], kind: str) -> list[NDArray[Any]]:
        return [file[name] for name in sorted(file) if name.startswith(kind)]


def _fingerprint(
    train: tuple[Array, NDArray[Any]], val: tuple[Array, NDArray[Any]], weights: Weights, settings: Settings
) -> str:
    """Of all that the epochs depend on."""
    digest = hashlib.sha256(json.dumps(asdict(settings)).encode() + weights.sha256.encode())
    for features, labels in (train, val):
        digest.update(np.ascontiguousarray(labels).tobytes())
        digest.update("".join(file.name for file in getattr(features, "files", ())).encode())
    return digest.hexdigest()
