from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from runtime.common.errors import UserError
from runtime.preprocess.picture import read_picture
from train.compress.photos import read_photos
from train.compress.teacher_cache import collect_teacher_outputs
from train.data.class_weights import NEGATIVE
from train.data.dataset import Dataset, PhotosError, file_sha256
from train.data.find_photos import find_photos
from train.data.synthetic import draw_flower
from train.network.descriptor import describe


@pytest.fixture
def dataset(synthetic_photos: Path, tmp_path: Path) -> Dataset:
    """A copy that a test may change."""
    return find_photos(shutil.copytree(synthetic_photos, tmp_path / "photos"))


@pytest.fixture(scope="module")
def teacher() -> keras.Model:
    """A model with the outputs of `teacher_model`, as small as possible."""
    image = keras.Input((224, 224, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    return keras.Model(image, [keras.layers.Dense(5, activation="softmax")(pooled), 2 * pooled, pooled])


def test_outputs_resume_after_the_pictures_that_are_done(
    dataset: Dataset, teacher: keras.Model, tmp_path: Path
) -> None:
    steps: list[int] = []
    first = collect_teacher_outputs(dataset, "train", 2, 32, teacher, tmp_path, steps.append)
    count = 2 * len(dataset.split("train"))
    assert len(first.features) == count and first.pictures.std() > 5
    assert steps[0] == 0 and sum(steps) == count
    (dataset.root / dataset.split("train")[0].path).unlink()  # resuming does not read the photos again
    steps.clear()
    again = collect_teacher_outputs(dataset, "train", 2, 32, teacher, tmp_path, steps.append)
    assert steps == [count]
    np.testing.assert_array_equal(again.features, first.features)
    np.testing.assert_array_equal(again.pictures, first.pictures)


def test_negatives_follow_the_photos_in_two_views(
    dataset: Dataset, teacher: keras.Model, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.png"
    draw_flower("tulips", 0).save(outside)
    photo = replace(dataset.photos[0], path=str(outside), split="train", sha256=file_sha256(outside))
    with_negative = replace(dataset, negatives=(photo,))
    outputs = collect_teacher_outputs(with_negative, "train", 3, 32, teacher, tmp_path, lambda count: None)
    photos = 3 * len(dataset.split("train"))
    assert outputs.photos == photos and outputs.labels[photos:].tolist() == [NEGATIVE, NEGATIVE]
    np.testing.assert_array_equal(outputs.pictures[photos], read_picture(outside, (32, 32)))
    np.testing.assert_array_equal(outputs.pictures[photos + 1], outputs.pictures[photos, :, ::-1])
    expected = describe([2 * outputs.features, outputs.features])
    np.testing.assert_allclose(outputs.descriptors, expected, rtol=1e-3)
    (tmp_path / "new").mkdir()
    alone = collect_teacher_outputs(dataset, "train", 3, 32, teacher, tmp_path / "new", lambda count: None)
    np.testing.assert_array_equal(outputs.without_negatives().features, alone.features)


def test_a_photo_that_has_changed_raises_photos_error(
    dataset: Dataset, teacher: keras.Model, tmp_path: Path
) -> None:
    one, two = dataset.split("train")[:2]
    (dataset.root / one.path).write_bytes((dataset.root / two.path).read_bytes())
    with pytest.raises(PhotosError, match=one.path):
        collect_teacher_outputs(dataset, "train", 1, 32, teacher, tmp_path, lambda count: None)
    assert read_photos(dataset, [two], 32).shape == (1, 32, 32, 3)
    with pytest.raises(PhotosError, match=one.path):
        read_photos(dataset, [one], 32)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a small disk that can be filled")
def test_a_full_disk_raises_an_error_before_anything_is_written(
    dataset: Dataset, teacher: keras.Model
) -> None:
    def fail(count: int) -> None:
        raise AssertionError("it continued after the disk was full")

    size, photos = 4000, len(dataset.split("train"))
    views = 2 + shutil.disk_usage("/dev/shm").total // (3 * size**2 * photos)
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        pytest.raises(UserError, match=r"No space left on device.*--resume"),
    ):
        collect_teacher_outputs(dataset, "train", views, size, teacher, Path(folder), fail)
