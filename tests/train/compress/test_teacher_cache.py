from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.common.errors import UserError
from runtime.preprocess.picture import read_picture
from train.compress.photos import read_photos
from train.compress.teacher_cache import collect_teacher_outputs, upper_teacher
from train.data.augment import augment
from train.data.class_weights import NEGATIVE
from train.data.dataset import Dataset, PhotosError, file_sha256
from train.data.find_photos import find_photos
from train.data.synthetic import draw_flower
from train.features.extraction import Features, extract
from train.network.descriptor import channel_means, describe
from train.network.heads import HEADS, build_classifier
from train.network.vgg import POOLS, Weights, read_weights
from train.settings import RECIPES

LAYER = "block4_pool"


@pytest.fixture(scope="module")
def weights(small_weights: Path) -> Weights:
    return read_weights(str(small_weights))


@pytest.fixture(scope="module")
def model(weights: Weights) -> keras.Model:
    """A model as a run has it, with random weights in its head."""
    head = HEADS["pooled"](5, RECIPES["pooled"])
    keras.Sequential([keras.Input(weights.output_shape("block5_pool")), *head])
    return build_classifier(weights, head)


@pytest.fixture
def dataset(synthetic_photos: Path, tmp_path: Path) -> Dataset:
    """A copy that a test may change."""
    return find_photos(shutil.copytree(synthetic_photos, tmp_path / "photos"))


def stored(dataset: Dataset, weights: Weights, views: int, layer: str = LAYER) -> Features:
    """The features of the data set; tests of this file share the cache."""
    return extract(dataset, weights, Path(os.environ["XDG_CACHE_HOME"], "teacher"), views=views, layer=layer)


def ignore(count: int) -> None:
    pass


@pytest.mark.parametrize("recipe", ["pooled", "article"])
@pytest.mark.parametrize("layer", [LAYER, "block5_pool"])
def test_outputs_are_those_of_the_whole_model(
    dataset: Dataset, weights: Weights, tmp_path: Path, recipe: str, layer: str
) -> None:
    head = HEADS[recipe](5, RECIPES[recipe])
    keras.Sequential([keras.Input(weights.output_shape("block5_pool")), *head])
    model = build_classifier(weights, head)
    features = stored(dataset, weights, 3, layer)
    outputs = collect_teacher_outputs(features, "train", 32, upper_teacher(model, layer), tmp_path, ignore)
    train = dataset.split("train")
    pixels = np.stack(
        [
            augment(dataset.root / photo.path, photo.sha256, [view], (64, 64))[0]
            for view in range(3)
            for photo in train
        ]
    )
    probabilities, means = whole_model(model, pixels)
    np.testing.assert_allclose(outputs.probabilities, probabilities, atol=2e-3)
    np.testing.assert_allclose(outputs.features, means[-1], rtol=2e-2, atol=1e-2)
    np.testing.assert_allclose(outputs.descriptors, describe(means), rtol=1e-2, atol=1e-2)
    assert outputs.probabilities.std(0).max() > 0.01  # the pictures do not all have the same answer


def whole_model(model: keras.Model, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], list[NDArray]]:
    """The probabilities, and the channel means of each pooling layer."""
    means = [channel_means(model.get_layer(pool).output) for pool in POOLS]
    outputs = keras.Model(model.inputs, [model.outputs[0], *means]).predict_on_batch(pixels)
    return outputs[0], outputs[1:]


def test_outputs_resume_after_the_pictures_that_are_done(
    dataset: Dataset, weights: Weights, model: keras.Model, tmp_path: Path
) -> None:
    steps: list[int] = []
    features, upper = stored(dataset, weights, 2), upper_teacher(model, LAYER)
    first = collect_teacher_outputs(features, "train", 32, upper, tmp_path, steps.append)
    count = 2 * len(dataset.split("train"))
    assert len(first.features) == count and first.pictures.std() > 5
    assert steps[0] == 0 and sum(steps) == count
    (dataset.root / dataset.split("train")[0].path).unlink()  # resuming does not read the photos again
    steps.clear()
    again = collect_teacher_outputs(features, "train", 32, upper, tmp_path, steps.append)
    assert steps == [count]
    np.testing.assert_array_equal(again.features, first.features)
    np.testing.assert_array_equal(again.pictures, first.pictures)


def test_negatives_follow_the_photos_in_two_views(
    dataset: Dataset, weights: Weights, model: keras.Model, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.png"
    draw_flower("tulips", 0).save(outside)
    photo = replace(dataset.photos[0], path=str(outside), split="train", sha256=file_sha256(outside))
    with_negative = stored(replace(dataset, negatives=(photo,)), weights, 3)
    upper = upper_teacher(model, LAYER)
    outputs = collect_teacher_outputs(with_negative, "train", 32, upper, tmp_path, ignore)
    photos = 3 * len(dataset.split("train"))
    assert outputs.photos == photos and outputs.labels[photos:].tolist() == [NEGATIVE, NEGATIVE]
    np.testing.assert_array_equal(outputs.pictures[photos], read_picture(outside, (32, 32)))
    np.testing.assert_array_equal(outputs.pictures[photos + 1], outputs.pictures[photos, :, ::-1])
    (tmp_path / "new").mkdir()
    without = stored(dataset, weights, 3)
    alone = collect_teacher_outputs(without, "train", 32, upper, tmp_path / "new", ignore)
    np.testing.assert_allclose(outputs.without_negatives().features, alone.features, rtol=1e-4, atol=1e-4)


def test_a_photo_that_has_changed_raises_photos_error(
    dataset: Dataset, weights: Weights, model: keras.Model, tmp_path: Path
) -> None:
    features = stored(dataset, weights, 1)
    one, two = dataset.split("train")[:2]
    (dataset.root / one.path).write_bytes((dataset.root / two.path).read_bytes())
    with pytest.raises(PhotosError, match=one.path):
        collect_teacher_outputs(features, "train", 32, upper_teacher(model, LAYER), tmp_path, ignore)
    assert read_photos(dataset, [two], 32).shape == (1, 32, 32, 3)
    with pytest.raises(PhotosError, match=one.path):
        read_photos(dataset, [one], 32)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a small disk that can be filled")
def test_a_full_disk_raises_an_error_before_anything_is_written(
    dataset: Dataset, weights: Weights, model: keras.Model
) -> None:
    def fail(count: int) -> None:
        raise AssertionError("it continued after the disk was full")

    features, photos = stored(dataset, weights, 2), 2 * len(dataset.split("train"))
    size = 1 + int((shutil.disk_usage("/dev/shm").total / (3 * photos)) ** 0.5)
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        pytest.raises(UserError, match=r"No space left on device.*--resume"),
    ):
        collect_teacher_outputs(features, "train", size, upper_teacher(model, LAYER), Path(folder), fail)
