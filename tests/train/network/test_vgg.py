from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from runtime.common.errors import ModelError
from tests.backbone import write_weights
from train.network.vgg import (
    BUNDLED,
    CONVOLUTIONS,
    base_layers,
    load_weights,
    picture_input,
    random_weights,
    read_weights,
)


@pytest.fixture(scope="module")
def reference() -> keras.Model:
    """Keras's own VGG16, taking BGR less the mean, with the bundled weights."""
    model = keras.applications.VGG16(weights=None, include_top=False, input_shape=(224, 224, 3))
    weights = read_weights()
    for name in CONVOLUTIONS:
        kernel = weights.tensors[f"{name}/kernel"]
        kernel = kernel[:, :, ::-1] if name == "block1_conv1" else kernel
        model.get_layer(name).set_weights([kernel, weights.tensors[f"{name}/bias"]])
    return model


def test_the_base_is_keras_vgg16_for_rgb(reference: keras.Model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    pixels[1] = (
        255,
        0,
        0,
    )  # tells RGB from BGR, and a mean folded into the bias from a true one at the borders
    image = picture_input()
    model = keras.Model(image, base_layers(image))
    load_weights(model, read_weights())
    expected = reference.predict_on_batch(
        keras.applications.vgg16.preprocess_input(pixels.astype(np.float32))
    )
    np.testing.assert_allclose(model.predict_on_batch(pixels), expected, rtol=1e-4, atol=1e-3)


def test_keras_h5_gives_the_same_tensors(reference: keras.Model, tmp_path: Path) -> None:
    reference.save_weights(tmp_path / "vgg16.weights.h5")
    bundled, read = read_weights(), read_weights(str(tmp_path / "vgg16.weights.h5"))
    assert read.sha256 != bundled.sha256
    assert read.tensors.keys() == bundled.tensors.keys()
    for name, tensor in bundled.tensors.items():
        np.testing.assert_array_equal(read.tensors[name], tensor)


def test_weights_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere.safetensors: No such file"):
        read_weights(str(tmp_path / "nowhere.safetensors"))
    for name in ("cut.safetensors", "cut.weights.h5"):
        (tmp_path / name).write_bytes(BUNDLED.read_bytes()[:1000])
        with pytest.raises(ModelError, match="not ") as error:
            read_weights(str(tmp_path / name))
        assert "\n" not in str(error.value)
    other = {
        "block1_conv1/kernel": np.zeros((3, 3, 3, 8), np.float16),
        "block1_conv1/bias": np.zeros(4, np.float16),
    }
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"block1_conv1/kernel is shaped \(3, 3, 3, 8\)"):
        read_weights(str(tmp_path / "other.safetensors"))


def test_a_weights_file_defines_channels_and_input_size(small_weights: Path) -> None:
    weights = read_weights(str(small_weights))
    assert weights.input_size == (64, 64)
    assert weights.widths == {name: max(8, filters // 16) for name, filters in CONVOLUTIONS.items()}
    assert weights.output_shape("block3_pool") == (8, 8, 16)
    assert weights.output_shape("block5_pool") == (2, 2, 32)
    rewritten = small_weights.with_name("again.safetensors")
    write_weights(rewritten, weights)
    again = read_weights(str(rewritten))
    assert again.sha256 == weights.sha256
    for name, tensor in weights.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)


@pytest.mark.parametrize("side", [0, 33, 2048])
def test_an_impossible_input_size_raises_model_error(side: int, tmp_path: Path) -> None:
    file = tmp_path / "odd.safetensors"
    write_weights(file, random_weights(dict.fromkeys(CONVOLUTIONS, 4), (side, side)))
    with pytest.raises(ModelError, match=rf"odd\.safetensors: input_size is {side}"):
        read_weights(str(file))


def test_a_type_that_numpy_lacks_raises_model_error(tmp_path: Path) -> None:
    header = b'{"block1_conv1/bias":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    file = tmp_path / "bf16.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ModelError, match=r"bf16\.safetensors: .*BF16.*float16 or float32"):
        read_weights(str(file))
