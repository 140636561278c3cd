from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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


def test_each_view_has_a_name() -> None:
    assert len({view_name(view) for view in range(8)}) == 8


def test_a_damaged_photo_is_told(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    for views in ([0], [2]):
        with pytest.raises(PictureError, match=r"cut\.jpg"):
            augment(tmp_path / "cut.jpg", HASH, views, SIZE)
