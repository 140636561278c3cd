"""Fine-tunes all layers of a network of benchmarks/mobile_networks.py, augmented as in train/finetune.py.

The batch normalizations are folded into the convolutions, so they keep the statistics of ImageNet.
"""

from __future__ import annotations

import sys

import keras
import numpy as np
from numpy.typing import NDArray

from train.data.augment import augment
from train.data.dataset import read_verified
from train.finetune import view_schedule, warmup_cosine
from train.run import Run
from train.settings import Settings

EPOCHS, BATCH, VIEWS = 12, 32, 5
LEARNING_RATE, WEIGHT_DECAY = 2e-4, 1e-2  # the peak; those of --fine-tune block5


def fine_tune(model: keras.Model, run: Run) -> float:
    """Trains `model`, uint8 pictures → probabilities, in place. Returns its best top-1 on val.

    The model keeps the weights of the epoch with that top-1.
    """
    size = model.inputs[0].shape[1:3]
    train, val = (pictures_of(run, split, views, size) for split, views in (("train", VIEWS), ("val", 1)))
    labels = {
        split: np.array([run.classes.index(photo.label) for photo in run.dataset.split(split)], np.int32)
        for split in ("train", "val")
    }
    photos = len(labels["train"])
    train_labels = np.tile(labels["train"], VIEWS)
    steps = EPOCHS * -(-photos // BATCH)
    model.trainable = True
    model.compile(
        keras.optimizers.AdamW(warmup_cosine(LEARNING_RATE, steps), weight_decay=WEIGHT_DECAY),
        keras.losses.SparseCategoricalCrossentropy(),
    )
    epoch_order = view_schedule(photos, Settings(fine_tune_views=VIEWS))
    best, weights = -1.0, model.get_weights()
    for epoch in range(EPOCHS):
        rows = epoch_order(epoch)
        losses = []
        for start in range(0, photos, BATCH):
            batch = rows[start : start + BATCH]
            pictures = train[batch]
            mirrored = np.random.default_rng([epoch, start]).random(len(batch)) < 0.5
            pictures[mirrored] = pictures[mirrored, :, ::-1]
            losses.append(float(model.train_on_batch(pictures, train_labels[batch])))
        probabilities = model.predict(val, batch_size=32, verbose=0)
        top1 = float((probabilities.argmax(1) == labels["val"]).mean())
        print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}, val top-1 {top1:.3f}", file=sys.stderr, flush=True)
        if top1 >= best:
            best, weights = top1, model.get_weights()
    model.set_weights(weights)
    return best


def pictures_of(run: Run, split: str, views: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The first view of all photos of a split, then the second view of all, uint8 [n, H, W, 3]."""
    photos = run.dataset.split(split)
    by_photo = [
        augment(read_verified(run.dataset, photo), photo.sha256, range(views), size) for photo in photos
    ]
    return np.stack([pictures[view] for view in range(views) for pictures in by_photo])
