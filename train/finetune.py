"""Train the last blocks of the base on, with the head, at a low learning rate.

Each epoch sees every training photo once, in the next of its views.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from train.data.class_weights import class_weights
from train.distributed import ProcessShard, broadcast_from_first, distribute, list_gpus
from train.network.vgg import Weights, block_layers, tensors_of
from train.settings import FIRST_TRAINED_BLOCK, Settings
from train.train_head import TrainedHead, deterministic
from train.trainer import Array, Batches, Tell, fingerprint_of, train_epochs

WARM_UP = 0.1  # of the steps: Adam's first estimates are poor, and the blocks are good as they are
BF16 = {"avx512_bf16", "amx_bf16"}  # what a CPU says that multiplies bfloat16 in hardware, at twice the pace


def upper_blocks(weights: Weights, settings: Settings, dtype: str | None = None) -> list[keras.layers.Layer]:
    """The blocks that are trained on, with the base's weights; none without --fine-tune.

    They compute in `dtype`, or in what is quick here.
    """
    first = FIRST_TRAINED_BLOCK[settings.fine_tune]
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
    return "mixed_bfloat16" if list_gpus() or flags & BF16 else "float32"


def fine_tune(
    start: TrainedHead,
    train: tuple[Array, NDArray[Any]],
    val: tuple[Array, NDArray[Any]],
    classes: int,
    weights: Weights,
    settings: Settings,
    kept: Path | None = None,
    tell: Tell = lambda stage, row: None,
    share: ProcessShard | None = None,
) -> tuple[TrainedHead, Weights]:
    """Go on from `start`, whose blocks are `upper_blocks`; returns the result in float32, and its weights.

    `train` holds settings.fine_tune_views views of its photos, all photos' first view, then all their second.
    The weights kept have the lowest loss on `val`, those of `start` among them. `kept` is the folder that an
    interrupted run goes on from, see train/epochs.py. Every GPU takes its part of each batch, and every
    process of `share`.
    """
    deterministic(settings.seed)
    photos = len(train[1]) // settings.fine_tune_views
    with distribute(share or ProcessShard()) as shared:
        # Built anew, for what is spread over devices must be built there.
        blocks = upper_blocks(weights, settings)
        head = [type(layer).from_config(layer.get_config()) for layer in start.head]
        model = keras.Sequential([keras.Input(train[0].shape[1:]), *blocks, *head])
        for layer, trained in zip(head, start.head, strict=True):
            layer.set_weights(broadcast_from_first(shared, trained.get_weights()))
        batches = Batches(*train, classes, settings.fine_tune_batch, view_schedule(photos, settings), shared)
        schedule = warmup_cosine(settings.fine_tune_learning_rate, settings.fine_tune_epochs * len(batches))
        model.compile(
            optimizer=keras.optimizers.AdamW(schedule, weight_decay=settings.weight_decay),
            loss=keras.losses.CategoricalCrossentropy(label_smoothing=settings.label_smoothing),
            metrics=["accuracy"],
            # In TensorFlow, XLA with mixed precision and several devices has crashed (keras issue 21366).
            jit_compile=keras.backend.backend() == "jax",
        )
        whole, untouched = Batches(*val, classes, share=shared), model.get_weights()
        before = model.evaluate(whole, verbose=0, return_dict=True)["loss"] if len(whole) else math.inf
        rows, stopped = train_epochs(
            model,
            batches,
            whole,
            settings.fine_tune_epochs,
            settings.fine_tune,
            kept,
            fingerprint_of(settings, train, val) if kept else "",
            class_weights(train[1], classes, settings.class_weight),
            tell,
        )
        if len(whole) and before <= min((row["val_loss"] for row in rows), default=math.inf):
            print(f"{settings.fine_tune}: no epoch was better on val than the head alone, which is kept")
            model.set_weights(untouched)
        for layer, trained in zip(start.head, head, strict=True):
            layer.set_weights(trained.get_weights())
    result = Weights({**weights.tensors, **tensors_of(blocks)}, weights.sha256, weights.source)
    exact = upper_blocks(result, settings, "float32")
    reduce = keras.Sequential([keras.Input(train[0].shape[1:]), *exact, start.head[0]])
    return TrainedHead(exact, start.head, reduce, start.rest, rows, stopped), result


def warmup_cosine(highest: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate by step: up to `highest` in WARM_UP of the steps, then down to 0 by a cosine."""
    warm = max(1, round(WARM_UP * steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm), warmup_target=highest, warmup_steps=warm
    )


def view_schedule(photos: int, settings: Settings) -> Callable[[int], NDArray[np.intp]]:
    """Of an epoch, by its number: every photo once, in the next of its views, in an order drawn from the seed
    and the epoch.
    """
    first = np.random.default_rng(settings.seed).integers(0, settings.fine_tune_views, photos)

    def order(epoch: int) -> NDArray[np.intp]:
        view = (first + epoch) % settings.fine_tune_views
        shuffled = np.random.default_rng([settings.seed, epoch]).permutation(photos)
        rows: NDArray[np.intp] = (view * photos + np.arange(photos))[shuffled]
        return rows

    return order
