"""FrameRecorder, on frames whose times the test chooses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.camera.camera import Frame
from runtime.camera.recorder import FrameRecorder
from runtime.common.errors import CameraError, UserError
from tests.runtime.camera.helpers import RED, plain


def record(
    folder: Path, times: list[float], every: float = 1.0, max_mb: float = 1000, first: int = 1
) -> list[str]:
    """Saves frames captured at `times` and numbered from `first` on; returns the messages."""
    messages = list[str]()
    with FrameRecorder(folder, every, max_mb, messages.append) as recorder:
        for number, captured_at in enumerate(times, first):
            recorder.save(Frame(plain(RED), captured_at, number))
    return messages


def test_frames_become_jpeg_photos_of_their_size_and_color(tmp_path: Path) -> None:
    messages = record(tmp_path / "roses", [1, 2])
    first, second = sorted((tmp_path / "roses").iterdir())
    assert re.fullmatch(r"\d{8}T\d{6}_000001\.jpg", first.name) and second.name.endswith("_000002.jpg")
    pixels = np.asarray(Image.open(first))
    assert pixels.shape == (48, 64, 3) and pixels[24, 32, 0] > 200 and pixels[24, 32, 2] < 50
    assert messages == [f"saved 2 photos in {tmp_path / 'roses'}"]


def test_at_most_one_frame_is_saved_per_interval(tmp_path: Path) -> None:
    messages = record(tmp_path / "roses", [10, 10.4, 10.9, 11.1, 12, 12.2])
    assert [path.name[-10:] for path in sorted((tmp_path / "roses").iterdir())] == [
        "000001.jpg",
        "000004.jpg",
        "000006.jpg",
    ]
    assert "saved 3 photos" in messages[-1]


def test_the_folder_grows_to_its_limit_and_earlier_photos_count(tmp_path: Path) -> None:
    folder = tmp_path / "roses"
    assert "saved 1 photo in" in record(folder, [1])[-1]
    size = next(folder.iterdir()).stat().st_size
    messages = record(folder, [1, 2, 3, 4], max_mb=3.5 * size / 1e6, first=2)
    assert len(list(folder.iterdir())) == 3 and "--max-mb" in messages[0] and len(messages) == 2
    assert "saved 2 photos" in messages[1]


def test_a_created_folder_without_a_photo_is_removed(tmp_path: Path) -> None:
    assert "saved 0 photos" in record(tmp_path / "new" / "roses", [])[-1]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    record(tmp_path / "empty", [])
    assert (tmp_path / "empty").is_dir()


def test_an_error_before_the_first_photo_is_the_last_message(tmp_path: Path) -> None:
    messages = list[str]()
    with pytest.raises(CameraError), FrameRecorder(tmp_path / "roses", 1, 1, messages.append):
        raise CameraError("0: no such camera")
    assert messages == [] and list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_raises_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/roses"):
        record(tmp_path / "file" / "roses", [])


def test_a_photo_that_cannot_be_written_stops_the_recorder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.camera.recorder.atomic_write", full)
    messages = record(tmp_path / "roses", [1, 2, 3])
    assert "no space left on device" in messages[0] and "saved 0 photos" in messages[1] and len(messages) == 2
