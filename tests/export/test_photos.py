"""The photos of a run are the recorded bytes, or an error names the photo and the next step."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.photos import read_photos, select_photos
from runtime.preprocess.picture import read_picture
from train.data.dataset import Dataset, Photo, PhotosError


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    photos = []
    for i in range(9):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (40, 30), (20 * i, 0, 255 - 20 * i)).save(path)
        label = "ab"[i % 2]
        photos.append(Photo(path.name, label, "test", hashlib.sha256(path.read_bytes()).hexdigest()))
    return Dataset(tmp_path, ("a", "b"), tuple(photos))


def test_pixels_are_decoded_by_the_devices_code(dataset: Dataset) -> None:
    steps: list[int] = []
    photos = read_photos(dataset, "test", (16, 24), step=steps.append)
    assert photos.pixels.shape == (9, 16, 24, 3)
    assert photos.pixels.dtype == np.uint8
    for photo, pixels, truth in zip(dataset.photos, photos.pixels, photos.truth, strict=True):
        assert np.array_equal(pixels, read_picture(dataset.root / photo.path, (16, 24)))
        assert dataset.classes[truth] == photo.label
    assert sum(steps) == 9


def test_a_limit_is_spread_evenly_over_the_classes_and_repeats(dataset: Dataset) -> None:
    chosen = select_photos(dataset.photos, 4)
    assert sorted(photo.label for photo in chosen) == ["a", "a", "b", "b"]
    assert select_photos(tuple(reversed(dataset.photos)), 4) == chosen
    assert select_photos(dataset.photos, 100) == dataset.photos
    assert set(select_photos(dataset.photos, 2)) < set(chosen)


def test_a_missing_or_changed_photo_raises_photos_error(dataset: Dataset) -> None:
    path = dataset.root / "3.png"
    Image.new("RGB", (40, 30)).save(path)
    with pytest.raises(PhotosError, match=r"3\.png: has changed"):
        read_photos(dataset, "test", (8, 8))
    path.unlink()
    with pytest.raises(PhotosError, match=r"3\.png: No such file"):
        read_photos(dataset, "test", (8, 8))


def test_an_empty_split_raises_photos_error(dataset: Dataset) -> None:
    with pytest.raises(PhotosError, match="no val photos"):
        read_photos(dataset, "val", (8, 8))
