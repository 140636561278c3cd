"""The base: VGG16's convolution layers with ImageNet weights, from an RGB picture to block5_pool.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015,
configuration D. The published weights expect BGR with the ImageNet mean subtracted. Here the kernel of
block1_conv1 is reversed and a layer subtracts the mean, so a model takes plain RGB. The mean cannot move into
the first bias: VGG16 pads with zeros after subtracting it, so the borders would change.

A weights file defines the backbone: a file with other channel numbers or another input size gives a smaller
or larger network with the same layers.
"""

from __future__ import annotations

import hashlib
import json
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
INPUT_SIZE_KEY = "input_size"  # in a safetensors file's metadata: pixels a side, "224" where it is missing
MAX_SIDE = 1024  # pixels: an input size that no VGG16 is trained with is an error in the file
MEAN_RGB = (123.68, 116.779, 103.939)  # of the ImageNet training pictures


@dataclass(frozen=True)
class Weights:
    """The base's kernels and biases by name ("block1_conv1/kernel"), float32 for RGB, the sha256 of their
    file, and the input size [height, width] that the base is used with.
    """

    tensors: Mapping[str, NDArray[Any]]
    sha256: str
    source: str
    input_size: tuple[int, int] = INPUT_SIZE

    @property
    def widths(self) -> dict[str, int]:
        """Channels by convolution: VGG16's own, those of a narrower file, or fewer after train.compress."""
        return {name: len(self.tensors[f"{name}/bias"]) for name in CONVOLUTIONS}

    def output_shape(self, layer: str) -> tuple[int, int, int]:
        """Height, width and channels of the output of a pooling layer, such as "block5_pool"."""
        block = POOLS.index(layer) + 1
        channels = self.widths[f"block{block}_conv{len(BLOCKS[block - 1])}"]
        return self.input_size[0] >> block, self.input_size[1] >> block, channels


def read_weights(source: str | None = None) -> Weights:
    """Read the base's weights: the bundled file when `source` is None, Keras's own download for
    "imagenet", or a file: Keras's .h5, or .safetensors with tensors named as in the bundled file. A
    .safetensors file may have fewer or more channels and, by its metadata, another input size.
    Raises ModelError.
    """
    path = Path(source) if source and source != "imagenet" else _download() if source else BUNDLED
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"base weights {path}: {error.strerror}; give --weights PATH or imagenet") from None
    if path.suffix == ".h5":
        tensors, input_size = _read_h5(path), INPUT_SIZE
    else:
        tensors, input_size = _read_safetensors(path, data)
    _check_shapes(path, tensors)
    rgb = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    rgb["block1_conv1/kernel"] = rgb["block1_conv1/kernel"][:, :, ::-1, :]
    return Weights(rgb, hashlib.sha256(data).hexdigest(), str(source or path.name), input_size)


def sha256_of(tensors: Mapping[str, NDArray[Any]]) -> str:
    """The sha256 of tensors that have no file of their own."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def random_weights(widths: Mapping[str, int], input_size: tuple[int, int], seed: int = 0) -> Weights:
    """Random weights with `widths` channels by convolution: normal with variance 2 / fan-in, which keeps the
    scale of activations (He et al., "Delving Deep into Rectifiers", 2015), and biases of 0.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    channels = 3
    for name, filters in widths.items():
        kernel = rng.normal(size=(3, 3, channels, filters)) * np.sqrt(2 / (9 * channels))
        tensors[f"{name}/kernel"] = kernel.astype(np.float32)
        tensors[f"{name}/bias"] = np.zeros(filters, np.float32)
        channels = filters
    return Weights(tensors, "", "random", input_size)


def picture_input(size: tuple[int, int] = INPUT_SIZE) -> keras.KerasTensor:
    """The input of each model: `image`, uint8 [N, height, width, 3], RGB, 0-255."""
    return keras.Input((*size, 3), dtype="uint8", name="image")


def base_layers(
    image: keras.KerasTensor,
    dtype: str = "float32",
    last: str = "block5_pool",
    widths: Mapping[str, int] = CONVOLUTIONS,
    trainable: bool = False,
) -> keras.KerasTensor:
    """The output of VGG16's layers up to `last` on top of `image`: [N, height, width, channels], in the
    compute type of the policy `dtype`. The layers are frozen unless `trainable`. Build a model, then call
    `load_weights` to fill them.
    """
    _, height, width, channels = image.shape
    # Rows as one axis: the engines subtract 3 values at a time from [N, height, width, 3], which takes ONNX
    # Runtime a tenth of the time of a compressed model.
    x = keras.layers.Reshape((height, width * channels), name="image_rows", dtype="float32")(image)
    # In 16 bits the subtraction would round the pixels, so this layer is float32 under every policy.
    x = keras.layers.Normalization(
        mean=MEAN_RGB * width, variance=(1.0,) * channels * width, name="imagenet_mean", dtype="float32"
    )(x)
    x = keras.layers.Reshape((height, width, channels), name="image_pixels", dtype="float32")(x)
    for layer in block_layers(1, POOLS.index(last) + 1, dtype, trainable, widths):
        x = layer(x)
    return x


def block_layers(
    first: int, last: int, dtype: str, trainable: bool, widths: Mapping[str, int] = CONVOLUTIONS
) -> list[keras.layers.Layer]:
    """The convolution and pooling layers of blocks `first` to `last`, both included, without weights."""
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
    """The kernels and biases of the convolutions among `layers`, by name as in Weights."""
    return {
        f"{layer.name}/{part}": np.asarray(value, np.float32)
        for layer in layers
        if layer.name in CONVOLUTIONS
        for part, value in zip(("kernel", "bias"), layer.get_weights(), strict=True)
    }


def load_weights(model: keras.Model, weights: Weights, scale: float = 1.0) -> None:
    """Set the weights of the model's convolution layers.

    Each activation becomes `scale` times as large, because ReLU and max pooling keep a common factor.
    """
    for layer in model.layers:
        if layer.name in CONVOLUTIONS:
            kernel, bias = weights.tensors[f"{layer.name}/kernel"], weights.tensors[f"{layer.name}/bias"]
            first = scale if layer.name == "block1_conv1" else 1.0
            layer.set_weights([first * kernel, scale * bias])


def _read_safetensors(path: Path, data: bytes) -> tuple[dict[str, NDArray[Any]], tuple[int, int]]:
    """The tensors by name, and the input size [height, width] that the metadata gives."""
    try:
        tensors = dict(load(data))
        # load() leaves the metadata out. The header is JSON after its length in 8 bytes.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        side = int((header.get("__metadata__") or {}).get(INPUT_SIZE_KEY, INPUT_SIZE[0]))
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise ModelError(f"base weights {path}: not a safetensors file ({error}); give another") from None
    except KeyError as error:  # a type that numpy lacks, such as BF16
        raise ModelError(
            f"base weights {path}: tensors of type {error.args[0]} cannot be read; convert them to float16 "
            "or float32"
        ) from None
    if not 32 <= side <= MAX_SIDE or side % 32:
        raise ModelError(
            f"base weights {path}: {INPUT_SIZE_KEY} is {side}, not a multiple of 32 from 32 to {MAX_SIDE}; "
            "correct the metadata"
        )
    return tensors, (side, side)


def _check_shapes(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Raise ModelError unless the tensors are VGG16's convolutions, of any number of channels each."""
    channels = 3
    for name in CONVOLUTIONS:
        bias = tensors.get(f"{name}/bias")
        filters = 0 if bias is None else bias.size
        for part, shape in (("bias", (filters,)), ("kernel", (3, 3, channels, filters))):
            found = tensors.get(f"{name}/{part}")
            if found is None or found.size == 0 or found.shape != shape:
                reason = (
                    "missing" if found is None or found.size == 0 else f"shaped {found.shape}, not {shape}"
                )
                raise ModelError(f"base weights {path}: {name}/{part} is {reason}; these are not VGG16's")
        channels = filters


def _read_h5(path: Path) -> dict[str, NDArray[Any]]:
    try:
        model = keras.applications.VGG16(weights=str(path), include_top=False, input_shape=(*INPUT_SIZE, 3))
    except Exception as error:  # h5py and Keras raise many types for a foreign file
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"base weights {path}: not VGG16's without its top ({reason}); give another"
        ) from None
    tensors: dict[str, NDArray[Any]] = {}
    for name in CONVOLUTIONS:
        tensors[f"{name}/kernel"], tensors[f"{name}/bias"] = model.get_layer(name).get_weights()
    return tensors


def _download() -> Path:
    """The file that Keras downloads into its own cache and verifies against the published hash."""
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
            f"base weights imagenet: {error}; without --weights the bundled file is used"
        ) from None
