"""Pooled features of a compressed network, from which its head learns."""

from __future__ import annotations

import keras
import numpy as np
from numpy.typing import NDArray

from train.network.vgg import Weights, base_layers, load_weights, picture_input
from train.progress import Progress

BATCH = 16  # a CPU is not faster with more


def predict_pooled_features(
    weights: Weights, pictures: NDArray[np.uint8], name: str = "pictures"
) -> NDArray[np.float32]:
    """The mean over block5_pool's positions, [n, D], for pictures [n, H, W, 3]; progress shows `name`."""
    image = picture_input((pictures.shape[1], pictures.shape[2]))
    pool = keras.layers.GlobalAveragePooling2D()
    model = keras.Model(image, pool(base_layers(image, widths=weights.widths)))
    load_weights(model, weights)
    features = np.empty((len(pictures), weights.widths["block5_conv3"]), np.float32)
    with Progress(f"features of {name}", len(pictures), "pictures") as progress:
        for start in range(0, len(pictures), BATCH):
            batch = np.asarray(pictures[start : start + BATCH])
            features[start : start + BATCH] = keras.ops.convert_to_numpy(model.predict_on_batch(batch))
            progress.step(len(batch))
    return features
