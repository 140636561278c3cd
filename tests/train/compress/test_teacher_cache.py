from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import keras
import pytest

from runtime.common.errors import UserError
from train.compress.teacher_cache import collect_teacher_outputs
from train.data.dataset import Dataset, PhotosError, find_photos
from train.data.synthetic import draw_flowers
from train.network.vgg import INPUT_SIZE


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return find_photos(draw_flowers(tmp_path_factory.mktemp("photos") / "drawn", 3))


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    """A model of the outputs that `with_features` gives, as small as can be."""
    image = keras.Input((*INPUT_SIZE, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    return keras.Model(image, [keras.layers.Dense(5, activation="softmax")(pooled), pooled])


def test_a_photo_that_changed_is_told(dataset: Dataset, trained: keras.Model, tmp_path: Path) -> None:
    photo = dataset.root / dataset.split("train")[0].path
    kept = photo.read_bytes()
    (tmp_path / "whole").mkdir()
    lessons = collect_teacher_outputs(
        dataset, "train", 2, 32, trained, tmp_path / "whole", lambda count: None
    )
    assert len(lessons.features) == 2 * len(dataset.split("train")) and lessons.pictures.std() > 5
    try:
        photo.write_bytes((dataset.root / dataset.split("train")[1].path).read_bytes())
        with pytest.raises(PhotosError, match="has changed since it was trained with"):
            collect_teacher_outputs(dataset, "train", 2, 32, trained, tmp_path, lambda count: None)
    finally:
        photo.write_bytes(kept)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no disk here is small enough to be filled")
def test_a_full_disk_is_told_before_it_is_written_to(dataset: Dataset, trained: keras.Model) -> None:
    def step(count: int) -> None:
        raise AssertionError("it went on to write")

    size, photos = 4000, len(dataset.split("train"))
    views = 2 + shutil.disk_usage("/dev/shm").total // (3 * size**2 * photos)
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        pytest.raises(UserError, match=r"cannot be written \(No space left on device\); make room there"),
    ):
        collect_teacher_outputs(dataset, "train", views, size, trained, Path(folder), step)
