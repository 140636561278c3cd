"""The frozen base on one device."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from train.features.devices import Devices
from train.network.descriptor import channel_means
from train.network.vgg import POOLS, Weights, base_layers, load_weights, picture_input

# Activations reach 17,000 on flowers and float16 ends at 65,504: in float16 they are scaled by a sixteenth.
FLOAT16_SCALE = 1 / 16
FLOAT16_MAX = float(np.finfo(np.float16).max)
# TensorFlow and JAX raise different exceptions, which have these words in common.
OUT_OF_MEMORY = ("ResourceExhausted", "RESOURCE_EXHAUSTED", "out of memory", "OOM")


class Replica:
    """The base on one device, compiled once. `batch` is halved whenever memory runs out."""

    def __init__(self, weights: Weights, device: str, devices: Devices, layer: str = "block5_pool") -> None:
        self.device = device
        self.input_size = weights.input_size
        self.batch = devices.batch
        self.jit = devices.jit
        self.scale = FLOAT16_SCALE if devices.dtype == "mixed_float16" else 1.0
        with keras.device(device):
            image = picture_input(weights.input_size)
            base = keras.Model(image, base_layers(image, devices.dtype, layer, weights.widths))
            pools = [base.get_layer(pool).output for pool in POOLS[: POOLS.index(layer) + 1]]
            self.model = keras.Model(image, [base.output, *map(channel_means, pools)])
            self.model.compile(jit_compile=devices.jit)
            load_weights(self.model, weights, self.scale)

    def __call__(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Pictures uint8 [N, *input_size, 3] → rows float16 [N, values]: the output of the layer, then the
        channel means of the pooling layers; `feature_layout` of train.features.store divides them.
        """
        parts: list[NDArray[Any]] = []
        start = 0
        while start < len(pixels):
            part = pixels[start : start + self.batch]
            if self.jit:  # XLA would compile the base again for another batch size
                part = np.pad(part, ((0, self.batch - len(part)), (0, 0), (0, 0), (0, 0)))
            try:
                with keras.device(self.device):
                    outputs = self.model.predict_on_batch(part)
            except Exception as error:  # each backend raises its own exceptions
                if not _is_out_of_memory(error) or self.batch == 1:
                    raise
                self.batch //= 2
                continue
            flat = [np.asarray(output, np.float32).reshape(len(part), -1) for output in outputs]
            exact = np.concatenate(flat, axis=1) / self.scale
            parts.append(np.minimum(exact, FLOAT16_MAX).astype(np.float16))
            start += self.batch
        rows: NDArray[Any] = np.concatenate(parts)[: len(pixels)]
        return rows


def _is_out_of_memory(error: Exception) -> bool:
    text = f"{type(error).__name__} {error}"
    return any(words in text for words in OUT_OF_MEMORY)
