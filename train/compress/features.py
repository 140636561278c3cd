"""Channel means of a compressed network, from which its head and its detector learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import keras
import numpy as np
from numpy.typing import NDArray

from train.network.descriptor import channel_means
from train.network.vgg import POOLS, Weights, base_layers, load_weights, picture_input
from train.progress import Progress

BATCH = 16  # a CPU is not faster with more


def predict_channel_means(
    weights: Weights, pictures: NDArray[np.uint8], rows: NDArray[np.intp], name: str
) -> list[NDArray[np.float32]]:
    """The channel means [n, W] of each pooling layer, for the `rows` [n] of pictures [N, H, W, 3].

    Progress shows `name`.
    """
    weights = replace(weights, input_size=(pictures.shape[1], pictures.shape[2]))
    batches = (np.asarray(pictures[rows[start : start + BATCH]]) for start in range(0, len(rows), BATCH))
    with Progress(f"features of {name}", len(rows), "pictures") as progress:
        return channel_means_of(weights, batches, len(rows), progress.step)


def channel_means_of(
    weights: Weights, batches: Iterable[NDArray[np.uint8]], count: int, on_step: Callable[[int], object]
) -> list[NDArray[np.float32]]:
    """The channel means [count, W] of each pooling layer, for `count` pictures in batches [n, H, W, 3].

    `on_step` gets the number of pictures of each finished batch.
    """
    model, start = channel_means_model(weights), 0
    means = [np.empty((count, *output.shape[1:]), np.float32) for output in model.outputs]
    for batch in batches:
        for part, values in zip(means, model.predict_on_batch(batch), strict=True):
            part[start : start + len(batch)] = keras.ops.convert_to_numpy(values)
        start += len(batch)
        on_step(len(batch))
    return means


def channel_means_model(weights: Weights) -> keras.Model:
    """The network with the channel means [N, W] of each pooling layer as outputs."""
    image = picture_input(weights.input_size)
    base = keras.Model(image, base_layers(image, widths=weights.widths))
    load_weights(base, weights)
    return keras.Model(image, [channel_means(base.get_layer(pool).output) for pool in POOLS])
