from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.common.errors import PictureError
from runtime.preprocess.picture import read_picture
from train.data.augment import augment, view_name
from train.data.synthetic import draw_flower

HASH, OTHER = "00ff" * 16, "01ff" * 16
SIZE = (64, 96)  # height, width


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "flower.png"
    draw_flower("roses", 0).save(path)
    return path


def test_the_first_two_are_the_photo_and_its_mirror_image(photo: Path) -> None:
    plain, mirrored = augment(photo, HASH, [0, 1], SIZE)
    np.testing.assert_array_equal(plain, read_picture(photo, SIZE))
    np.testing.assert_array_equal(mirrored[:, ::-1], plain)


def test_draws_differ_and_repeat(photo: Path) -> None:
    drawn = augment(photo, HASH, range(2, 6), SIZE)
    assert all(view.shape == (*SIZE, 3) and view.dtype == np.uint8 for view in drawn)
    assert len({view.tobytes() for view in drawn}) == 4
    for first, again in zip(drawn, augment(photo, HASH, range(2, 6), SIZE), strict=True):
        np.testing.assert_array_equal(first, again)
    assert drawn[0].tobytes() == augment(photo, HASH, [2], SIZE)[0].tobytes(), "whatever else is asked for"
    assert drawn[0].tobytes() != augment(photo, OTHER, [2], SIZE)[0].tobytes(), "each photo has its own"


def test_random_views_are_crops_of_which_half_are_mirrored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.data.augment.COLOR_FACTOR", (1, 1))
    x, y = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    Image.fromarray(np.stack([x, y, 0 * x], axis=2)).save(tmp_path / "ramp.png")
    views = np.array(augment(tmp_path / "ramp.png", HASH, range(2, 202), SIZE), float)
    # The shares of the photo's width and height that a view shows, from the color of its opposite edges.
    width = (views[:, 0, -1, 0] - views[:, 0, 0, 0]) / 255 * SIZE[1] / (SIZE[1] - 1)
    height = (views[:, -1, 0, 1] - views[:, 0, 0, 1]) / 255 * SIZE[0] / (SIZE[0] - 1)
    assert 80 < (width < 0).sum() < 120
    area, aspect = np.abs(width) * height, np.abs(width) / height
    assert 0.48 < area.min() < 0.55 and 0.9 < area.max() < 1.02
    assert 0.78 < aspect.min() < 0.85 and 1.18 < aspect.max() < 1.28


def test_each_view_has_a_name() -> None:
    assert len({view_name(view) for view in range(8)}) == 8


def test_a_damaged_photo_is_told(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    for views in ([0], [2]):
        with pytest.raises(PictureError, match=r"cut\.jpg"):
            augment(tmp_path / "cut.jpg", HASH, views, SIZE)
