"""VGG16's convolution layers with their ImageNet weights, from an RGB picture to block5_pool.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015,
configuration D. The published weights take blue, green, red with the ImageNet mean subtracted. Here the swap
lies in block1_conv1's kernel and the mean in a layer, so that a model takes an RGB picture as it is. (The
mean cannot move into the first bias: VGG pads with zeros after subtracting it, so the borders would change.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load

from runtime.common.errors import ModelError

BUNDLED = Path(__file__).parents[2] / "models/vgg16/vgg16_imagenet_notop.float16.safetensors"
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
CONVOLUTIONS = {
    f"block{block}_conv{conv}": filters
    for block, widths in enumerate(BLOCKS, 1)
    for conv, filters in enumerate(widths, 1)
}
POOLS = tuple(f"block{block}_pool" for block in range(1, len(BLOCKS) + 1))
INPUT_SIZE = (224, 224)
# What each pooling gives for a picture, [height, width, channels].
SHAPES = {
    pool: (INPUT_SIZE[0] >> at, INPUT_SIZE[1] >> at, BLOCKS[at - 1][-1]) for at, pool in enumerate(POOLS, 1)
}
MEAN_RGB = (123.68, 116.779, 103.939)  # of the ImageNet training pictures, as published with the weights


@dataclass(frozen=True)
class Weights:
    """The base's kernels and biases by name ("block1_conv1/kernel"), float32 for RGB, and the sha256 of
    their file.
    """

    tensors: Mapping[str, NDArray[Any]]
    sha256: str
    source: str

    @property
    def widths(self) -> dict[str, int]:
        """Channels by convolution: VGG16's own, or fewer after train.compress."""
        return {name: len(self.tensors[f"{name}/bias"]) for name in CONVOLUTIONS}


def read_weights(source: str | None = None) -> Weights:
    """Read the base's weights: the bundled file when `source` is None, Keras's own download for
    "imagenet", or a file (.safetensors with tensors named as in the bundled one, or Keras's .h5). Raises
    ModelError.
    """
    path = Path(source) if source and source != "imagenet" else _download() if source else BUNDLED
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"base weights {path}: {error.strerror}; give --weights PATH or imagenet") from None
    tensors = _read_h5(path) if path.suffix == ".h5" else _read_safetensors(path, data)
    channels = 3
    for name, filters in CONVOLUTIONS.items():
        for part, shape in (("kernel", (3, 3, channels, filters)), ("bias", (filters,))):
            found = tensors.get(f"{name}/{part}")
            if found is None or found.shape != shape:
                what = "missing" if found is None else f"shaped {found.shape}, not {shape}"
                raise ModelError(f"base weights {path}: {name}/{part} is {what}; these are not VGG16's")
        channels = filters
    rgb = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    rgb["block1_conv1/kernel"] = rgb["block1_conv1/kernel"][:, :, ::-1, :]
    return Weights(rgb, hashlib.sha256(data).hexdigest(), str(source or path.name))


def picture_input(size: tuple[int, int] = INPUT_SIZE) -> keras.KerasTensor:
    """The input of every model: `image`, uint8, [N, height, width, 3], RGB, 0-255."""
    return keras.Input((*size, 3), dtype="uint8", name="image")


def base_layers(
    image: keras.KerasTensor,
    dtype: str = "float32",
    last: str = "block5_pool",
    widths: Mapping[str, int] = CONVOLUTIONS,
    trainable: bool = False,
) -> keras.KerasTensor:
    """Put VGG16's layers to `last`, frozen unless `trainable`, on top of `image`; returns what `last` gives,
    [N, *SHAPES[last]] for VGG16's own size and widths, in the policy `dtype`'s compute type. `load_weights`
    fills them once they stand in a model.
    """
    # Subtracting in 16 bits would round the pixels, so this layer stays in float32 under every policy.
    x = keras.layers.Normalization(mean=MEAN_RGB, variance=(1.0,) * 3, name="imagenet_mean", dtype="float32")(
        image
    )
    for layer in block_layers(1, POOLS.index(last) + 1, dtype, trainable, widths):
        x = layer(x)
    return x


def block_layers(
    first: int, last: int, dtype: str, trainable: bool, widths: Mapping[str, int] = CONVOLUTIONS
) -> list[keras.layers.Layer]:
    """The convolutions and poolings of blocks `first` to `last`, both included, without weights yet."""
    layers: list[keras.layers.Layer] = []
    for block in range(first, last + 1):
        layers += [
            keras.layers.Conv2D(
                widths[name],
                3,
                padding="same",
                activation="relu",
                name=name,
                dtype=dtype,
                trainable=trainable,
            )
            for name in CONVOLUTIONS
            if name.startswith(f"block{block}_")
        ]
        layers.append(keras.layers.MaxPooling2D(2, name=f"block{block}_pool", dtype=dtype))
    return layers


def tensors_of(layers: Iterable[keras.layers.Layer]) -> dict[str, NDArray[np.float32]]:
    """The convolutions' kernels and biases by name, as in Weights; other layers have none."""
    return {
        f"{layer.name}/{part}": np.asarray(value, np.float32)
        for layer in layers
        if layer.name in CONVOLUTIONS
        for part, value in zip(("kernel", "bias"), layer.get_weights(), strict=True)
    }


def load_weights(model: keras.Model, weights: Weights, scale: float = 1.0) -> None:
    """Fill the convolution layers that the model has.

    Every activation comes out `scale` times as large, for ReLU and max pooling let a common factor through.
    """
    for layer in model.layers:
        if layer.name in CONVOLUTIONS:
            kernel, bias = weights.tensors[f"{layer.name}/kernel"], weights.tensors[f"{layer.name}/bias"]
            first = scale if layer.name == "block1_conv1" else 1.0
            layer.set_weights([first * kernel, scale * bias])


def _read_safetensors(path: Path, data: bytes) -> dict[str, NDArray[Any]]:
    try:
        return dict(load(data))
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise ModelError(f"base weights {path}: not a safetensors file ({error}); give another") from None


def _read_h5(path: Path) -> dict[str, NDArray[Any]]:
    try:
        model = keras.applications.VGG16(weights=str(path), include_top=False, input_shape=(*INPUT_SIZE, 3))
    except Exception as error:  # h5py and Keras raise many kinds for a file that is not theirs
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"base weights {path}: not VGG16's without its top ({reason}); give another"
        ) from None
    tensors: dict[str, NDArray[Any]] = {}
    for name in CONVOLUTIONS:
        tensors[f"{name}/kernel"], tensors[f"{name}/bias"] = model.get_layer(name).get_weights()
    return tensors


def _download() -> Path:
    """Keras's own copy of the weights, in Keras's own cache, checked against its published hash."""
    try:
        return Path(
            keras.utils.get_file(
                "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
                "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
                "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
                cache_subdir="models",
                file_hash="6d6bbae143d832006294945121d1f1fc",
            )
        )
    except Exception as error:  # get_file wraps urllib's errors in a bare Exception
        raise ModelError(
            f"base weights imagenet: {error}; leave --weights out for the bundled ones"
        ) from None
