"""NoneTray: the folder of photos that people marked as none of the classes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.common.atomic import UNFINISHED_AFTER
from runtime.preprocess.stored_photo import added_at
from runtime.server.none_tray import NoneTray
from tests.runtime.inference.test_taught_photos import plant_entries


def picture(shade: int) -> NDArray[np.uint8]:
    return np.full((48, 64, 3), shade, np.uint8)


def shades(tray: NoneTray) -> list[int]:
    """The shades of the photos, oldest first."""
    return [round(float(np.asarray(Image.open(tray.path(id))).mean())) for id in tray.ids()]


def test_photos_are_jpeg_files_in_the_order_of_their_times(tmp_path: Path) -> None:
    tray = NoneTray(tmp_path / "new" / "none")
    assert tray.ids() == [] and not tray.folder.exists()
    before = datetime.now(timezone.utc)
    added = [tray.add(picture(shade)) for shade in (10, 90, 50)]
    assert tray.ids() == added and shades(tray) == [10, 90, 50]
    assert {path.name for path in tray.folder.iterdir()} == set(added)
    assert Image.open(tray.path(added[0])).format == "JPEG"
    assert before <= added_at(added[0]) < added_at(added[1]) <= datetime.now(timezone.utc)


def test_the_same_picture_is_stored_once(tmp_path: Path) -> None:
    tray = NoneTray(tmp_path)
    assert tray.add(picture(10)) == tray.add(picture(10))
    assert tray.add(picture(20)) != tray.ids()[0] and len(tray.ids()) == 2


def test_the_newest_photos_are_kept(tmp_path: Path) -> None:
    tray = NoneTray(tmp_path, max_photos=3)
    for shade in (10, 20, 30, 40, 50):
        tray.add(picture(shade))
    assert shades(tray) == [30, 40, 50]
    size = tray.path(tray.ids()[0]).stat().st_size
    small = NoneTray(tmp_path, max_photos=3, max_bytes=round(2.5 * size))
    small.add(picture(60))
    assert shades(small) == [50, 60]


def test_other_files_are_neither_listed_nor_deleted(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.jpg")
    tray = NoneTray(tmp_path, max_photos=1)
    tray.add(picture(10))
    tray.add(picture(20))
    tray.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jpg"]


def test_a_file_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    tray = NoneTray(tmp_path)
    unfinished = tmp_path / f".{tray.add(picture(10))}.123"
    unfinished.write_bytes(b"half")
    assert len(tray.ids()) == 1
    tray.add(picture(20))
    assert unfinished.exists(), "another process may be writing it"
    os.utime(unfinished, (time.time() - 2 * UNFINISHED_AFTER,) * 2)
    tray.add(picture(30))
    assert not unfinished.exists() and len(tray.ids()) == 3


@pytest.mark.parametrize("act", [NoneTray.path, NoneTray.remove])
@pytest.mark.parametrize(
    "id", ["../secret", "secret", "", ".", "20250131T120000000000Z_0123456789abcdef.jpg"]
)
def test_only_photos_of_the_tray_can_be_named(
    act: Callable[[NoneTray, str], object], id: str, tmp_path: Path
) -> None:
    tray = NoneTray(tmp_path / "tray")
    tray.add(picture(10))
    for secret in (tmp_path / "secret", tmp_path / "tray" / "secret"):
        secret.write_text("")
    with pytest.raises(KeyError):
        act(tray, id)
    assert (tmp_path / "secret").exists() and (tmp_path / "tray" / "secret").exists()


def test_a_removed_photo_is_gone(tmp_path: Path) -> None:
    tray = NoneTray(tmp_path)
    first, second = tray.add(picture(10)), tray.add(picture(20))
    tray.remove(first)
    assert tray.ids() == [second] and not (tmp_path / first).exists()


def test_only_files_are_photos(tmp_path: Path) -> None:
    plant_entries(tmp_path / "tray")
    tray = NoneTray(tmp_path / "tray", max_photos=1)
    added = [tray.add(picture(shade)) for shade in (10, 20)]
    assert tray.ids() == added[1:]
    for planted in (tmp_path / "tray").iterdir():
        if planted.name not in added:
            with pytest.raises(KeyError):
                tray.read(planted.name)


def test_a_file_that_is_too_large_for_a_photo_is_not_read(tmp_path: Path) -> None:
    tray = NoneTray(tmp_path)
    id = tray.add(picture(10))
    os.truncate(tmp_path / id, 10**12)
    with pytest.raises(KeyError):
        tray.read(id)
