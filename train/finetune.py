"""Fine-tune the last blocks of the base together with the head, at a low learning rate.

train/trainer.py holds the loop and its checkpoints. An epoch trains on each photo once, in its next view, and
on some negatives.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from train.data.class_weights import NEGATIVE, class_weights
from train.distributed import ProcessShard, broadcast_from_first, distribute, list_gpus
from train.network.vgg import BLOCKS, POOLS, Weights, block_layers, tensors_of
from train.settings import FIRST_TRAINED_BLOCK, Settings
from train.train_head import TrainedHead, make_deterministic
from train.trainer import (
    Batches,
    EpochCallback,
    EpochOrder,
    PhotoAccuracy,
    Split,
    Stage,
    ignore_epoch,
    read_errors,
    train_epochs,
    training_fingerprint,
    with_negatives,
)

WARMUP_SHARE = 0.1  # of all steps: Adam's first estimates are poor and would damage the trained blocks
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}  # CPUs with one of these multiply bfloat16 twice as fast


def upper_blocks(weights: Weights, settings: Settings, dtype: str | None = None) -> list[keras.layers.Layer]:
    """The blocks that --fine-tune trains, with the base's weights; an empty list without --fine-tune.

    They compute in `dtype`, by default in `compute_dtype()`.
    """
    first = FIRST_TRAINED_BLOCK[settings.fine_tune]
    if first > len(BLOCKS):
        return []
    layers = block_layers(first, len(BLOCKS), dtype or compute_dtype(), True, weights.widths)
    for layer in layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = weights.tensors[f"{layer.name}/kernel"], weights.tensors[f"{layer.name}/bias"]
            layer.build((None, None, None, kernel.shape[2]))
            layer.set_weights([kernel, bias])
    return layers


def last_frozen_layer(blocks: str) -> str:
    """The pooling layer below the first block that --fine-tune BLOCKS trains, such as "block4_pool"."""
    return POOLS[FIRST_TRAINED_BLOCK[blocks] - 2]


def compute_dtype() -> str:
    """bfloat16 on a GPU or a CPU that supports it, else float32.

    bfloat16 has float32's range, so the loss needs no scaling.
    """
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    return "mixed_bfloat16" if list_gpus() or flags & BFLOAT16_FLAGS else "float32"


def fine_tune(
    start: TrainedHead,
    train: Split,
    val: Split,
    classes: int,
    weights: Weights,
    settings: Settings,
    checkpoint_dir: Path | None = None,
    on_epoch: EpochCallback = ignore_epoch,
    shard: ProcessShard | None = None,
) -> tuple[TrainedHead, Weights]:
    """Train `start`, whose blocks are `upper_blocks`, further; returns the result in float32 and its weights.

    `train` holds settings.fine_tune_views views of each photo: the first view of all photos, then the second
    view of all photos, and so on, and then the negatives. The weights of `start` stay when no epoch has a
    lower loss on `val`. See train/trainer.py for `checkpoint_dir` and `on_epoch`. Each batch is divided among
    all GPUs, and among all processes of `shard`.
    """
    make_deterministic(settings.seed)
    rows = int((train[1] != NEGATIVE).sum())  # of all views
    photo_order = view_schedule(rows // settings.fine_tune_views, settings)
    epoch_order = with_negatives(photo_order, rows, len(train[1]) - rows, settings.seed)
    with distribute(shard or ProcessShard()) as shared:
        # Layers that a distribution spreads over devices must be created inside its scope.
        blocks = upper_blocks(weights, settings)
        head = [type(layer).from_config(layer.get_config()) for layer in start.head]
        model = keras.Sequential([keras.Input(train[0].shape[1:]), *blocks, *head])
        for layer, trained in zip(head, start.head, strict=True):
            layer.set_weights(broadcast_from_first(shared, trained.get_weights()))
        weights_by_class = class_weights(train[1], classes, settings.class_weight)
        batches = Batches(*train, classes, settings.fine_tune_batch, epoch_order, shared, weights_by_class)
        val_batches = Batches(*val, classes, shard=shared)
        _compile(model, settings, settings.fine_tune_epochs * len(batches))
        start_weights, start_loss = model.get_weights(), _loss(model, val_batches)
        stage = Stage(
            settings.fine_tune,
            settings.fine_tune_epochs,
            checkpoint_dir,
            training_fingerprint(settings, train, val) if checkpoint_dir else "",
            on_epoch,
        )
        tuned = train_epochs(model, batches, val_batches, stage)
        best_loss = min((epoch.get("val_loss", math.inf) for epoch in tuned.epochs), default=math.inf)
        discarded = bool(len(val_batches) and tuned.epochs) and start_loss <= best_loss
        if discarded:
            print(f"{settings.fine_tune}: no epoch improved the loss on val, so the blocks stay as they were")
        if discarded or not tuned.epochs:
            model.set_weights(start_weights)
        for layer, trained in zip(start.head, head, strict=True):
            layer.set_weights(trained.get_weights())
    result = replace(weights, tensors={**weights.tensors, **tensors_of(blocks)})
    exact = upper_blocks(result, settings, "float32")
    reducer = keras.Sequential([keras.Input(train[0].shape[1:]), *exact, start.head[0]])
    tuned_head = TrainedHead(
        exact, start.head, reducer, start.classifier, tuned.epochs, tuned.interrupted, start.pooled, discarded
    )
    return tuned_head, result


def warmup_cosine(peak: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """A learning rate that rises to `peak` in WARMUP_SHARE of the steps, then falls to 0 along a cosine."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=peak, warmup_steps=warmup
    )


def view_schedule(photos: int, settings: Settings) -> EpochOrder:
    """The rows of each epoch: each photo once, in its next view, in an order that depends on the seed and the
    epoch.
    """
    first_view = np.random.default_rng(settings.seed).integers(0, settings.fine_tune_views, photos)

    def epoch_order(epoch: int) -> NDArray[np.intp]:
        view = (first_view + epoch) % settings.fine_tune_views
        shuffled = np.random.default_rng([settings.seed, epoch]).permutation(photos)
        rows: NDArray[np.intp] = (view * photos + np.arange(photos))[shuffled]
        return rows

    return epoch_order


def _compile(model: keras.Model, settings: Settings, steps: int) -> None:
    schedule = warmup_cosine(settings.fine_tune_learning_rate, steps)
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=settings.weight_decay),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=settings.label_smoothing),
        metrics=[PhotoAccuracy()],
        # In TensorFlow, XLA with mixed precision and several devices has crashed (keras issue 21366).
        jit_compile=keras.backend.backend() == "jax",
    )


def _loss(model: keras.Model, batches: Batches) -> float:
    with read_errors(batches):
        return model.evaluate(batches, verbose=0, return_dict=True)["loss"] if len(batches) else math.inf
