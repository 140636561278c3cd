"""A small base for tests: VGG16 with a sixteenth of its channels, 8 or more, for pictures of 64 x 64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from safetensors.numpy import save

from train.data.synthetic import FLOWERS, draw_flower
from train.network.vgg import BLOCKS, CONVOLUTIONS, INPUT_SIZE_KEY, MEAN_RGB, Weights, random_weights

SIDE = 64
WIDTHS = {name: max(8, filters // 16) for name, filters in CONVOLUTIONS.items()}
NOISE = 0.3  # the random part of a kernel; the rest passes each channel on


def small_backbone() -> Weights:
    """Weights whose features differ between drawn flowers: each layer passes its input on, with noise, and
    its output has mean 0 and variance 1 on a few drawings. Random kernels alone give every picture nearly
    the same features after 13 layers.
    """
    random = random_weights(WIDTHS, (SIDE, SIDE), seed=1)
    signs = np.random.default_rng(1)
    tensors = dict(random.tensors)
    drawings = [draw_flower(name, number).resize((SIDE, SIDE)) for name in FLOWERS for number in range(3)]
    x = np.stack([np.asarray(drawing, np.float32) for drawing in drawings]) - np.array(MEAN_RGB, np.float32)
    for name in CONVOLUTIONS:
        kernel = random.tensors[f"{name}/kernel"]
        if name != "block1_conv1":
            kernel = NOISE * kernel
            inputs, outputs = kernel.shape[2:]
            for channel in range(outputs):
                passed_on = 1 if channel < inputs else signs.choice([-1, 1])
                kernel[1, 1, channel % inputs, channel] += passed_on
        y = np.asarray(keras.ops.conv(x, kernel, padding="same"))
        mean, deviation = y.mean((0, 1, 2)), y.std((0, 1, 2))
        tensors[f"{name}/kernel"], tensors[f"{name}/bias"] = kernel / deviation, -mean / deviation
        x = np.maximum((y - mean) / deviation, 0)
        if name.endswith(f"conv{len(BLOCKS[int(name[5]) - 1])}"):
            x = np.asarray(keras.ops.max_pool(x, 2, strides=2))
    return replace(random, tensors=tensors)


def write_weights(path: Path, weights: Weights) -> None:
    """Write a .safetensors file that `read_weights` reads with the same tensors and input size."""
    bgr = dict(weights.tensors)
    bgr["block1_conv1/kernel"] = bgr["block1_conv1/kernel"][:, :, ::-1, :]
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in bgr.items()}
    path.write_bytes(save(contiguous, {INPUT_SIZE_KEY: str(weights.input_size[0])}))
