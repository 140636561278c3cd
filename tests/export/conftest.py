"""A small network with the inputs and outputs of the contract: an inference takes milliseconds."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from export.parity.result import FileKey
from export.parity.runner import ParityReference
from runtime.model_file.contract import Contract
from tests.helpers import make_contract

if TYPE_CHECKING:
    import keras

SIDE = 32
LABELS = ("daisy", "dent-de-lion", "バラ")


def small_model(known: bool = False) -> keras.Model:
    """VGG16's kinds of layer on 32 x 32 pixels, with random weights that give pictures different labels."""
    import keras

    def initializer(scale: float, seed: int) -> keras.Initializer:
        return keras.initializers.VarianceScaling(scale, seed=seed)

    image = keras.Input((SIDE, SIDE, 3), dtype="uint8", name="image")
    x = keras.layers.Normalization(mean=(123.68, 116.779, 103.939), variance=(1, 1, 1), name="imagenet_mean")(
        image
    )
    for block, filters in ((1, 16), (2, 32)):
        name = f"block{block}"
        convolution = keras.layers.Conv2D(
            filters,
            3,
            padding="same",
            activation="relu",
            kernel_initializer=initializer(2, block),
            name=f"{name}_conv1",
        )
        x = keras.layers.MaxPooling2D(name=f"{name}_pool")(convolution(x))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dropout(0.5, name="dropout")(x)
    x = keras.layers.Identity(name="features")(x)
    logits = keras.layers.Dense(len(LABELS), kernel_initializer=initializer(0.01, 3), name="logits")(x)
    outputs = [keras.layers.Softmax(name="probabilities")(logits)]
    if known:
        outputs.append(
            keras.layers.Dense(
                1, activation="sigmoid", kernel_initializer=initializer(1e-4, 4), name="known"
            )(x)
        )
    return keras.Model(image, [*outputs, x], name="small")


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can grow over 1 MB, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session")
def model() -> keras.Model:
    return small_model()


@pytest.fixture(scope="session")
def pictures() -> NDArray[np.uint8]:
    """Eight pictures, uint8 [8, 32, 32, 3], with stripes and noise in different colours."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (8, 1, 1, 3))
    noise = random.normal(0, 40, (8, SIDE, SIDE, 3))
    stripes = 60 * np.sin(np.arange(SIDE) * random.uniform(0.1, 2, (8, 1, 1)))[..., None]
    return (colours + noise + stripes).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def contract() -> Contract:
    return make_contract("small", LABELS, SIDE, synthetic=True)


@pytest.fixture(scope="session")
def float_files(model: keras.Model) -> dict[FileKey, bytes]:
    """The small model in every float format, without the contract."""
    from export.formats import FLOAT_CONVERTERS

    return {key: convert(model) for key, convert in FLOAT_CONVERTERS.items()}


@pytest.fixture(scope="session")
def embedded(float_files: dict[FileKey, bytes], contract: Contract) -> dict[FileKey, bytes]:
    """The same files with the contract inside."""
    from export.metadata import embed_contract

    return {key: embed_contract(data, key.format, contract) for key, data in float_files.items()}


@pytest.fixture(scope="session")
def reference(model: keras.Model, pictures: NDArray[np.uint8]) -> ParityReference:
    """The small model's outputs, which also serve as the labels."""
    from export.serving_model import predict

    outputs = predict(model, pictures, lambda done: None)["probabilities"]
    return ParityReference(pictures, outputs.argmax(axis=1), outputs)
