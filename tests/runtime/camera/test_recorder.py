"""PhotoRecorder, on frames whose times the test chooses, and on photos."""

from __future__ import annotations

import os
import re
import sys
from contextlib import AbstractContextManager
from datetime import datetime, tzinfo
from pathlib import Path
from threading import Event, Thread
from typing import BinaryIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.camera.recorder import PhotoRecorder
from runtime.common.atomic import atomic_create
from runtime.common.errors import CameraError, PictureError, UserError
from tests.helpers import PATIENCE
from tests.runtime.camera.helpers import RED, plain


def record(
    folder: Path, times: list[float], every: float = 1.0, max_mb: float = 1000, first: int = 1
) -> list[str]:
    """Saves frames captured at `times` and numbered from `first` on; returns the messages."""
    messages = list[str]()
    with PhotoRecorder(folder, every, max_mb, messages.append) as recorder:
        for number, captured_at in enumerate(times, first):
            recorder.save(lambda: plain(RED), number, captured_at)
    return messages


def test_frames_become_jpeg_photos_of_their_size_and_color(tmp_path: Path) -> None:
    messages = record(tmp_path / "roses", [1, 2])
    first, second = sorted((tmp_path / "roses").iterdir())
    assert re.fullmatch(r"\d{8}T\d{6}_000001_[0-9a-f]{8}\.jpg", first.name) and "_000002_" in second.name
    pixels = np.asarray(Image.open(first))
    assert pixels.shape == (48, 64, 3) and pixels[24, 32, 0] > 200 and pixels[24, 32, 2] < 50
    assert messages == [f"saved 2 photos in {tmp_path / 'roses'}"]


def test_at_most_one_frame_is_saved_per_interval(tmp_path: Path) -> None:
    messages = record(tmp_path / "roses", [10, 10.4, 10.9, 11.1, 12, 12.2])
    names = [path.name for path in sorted((tmp_path / "roses").iterdir())]
    assert [name.split("_")[1] for name in names] == ["000001", "000004", "000006"]
    assert "saved 3 photos" in messages[-1]


def test_the_folder_grows_to_its_limit_and_earlier_photos_count(tmp_path: Path) -> None:
    folder = tmp_path / "roses"
    assert "saved 1 photo in" in record(folder, [1])[-1]
    size = next(folder.iterdir()).stat().st_size
    messages = record(folder, [1, 2, 3, 4], max_mb=3.5 * size / 1e6, first=2)
    assert len(list(folder.iterdir())) == 3 and "--max-mb" in messages[0] and len(messages) == 2
    assert "saved 2 photos" in messages[1]


class StoppedClock(datetime):
    """A board without a battery: at each start it is the same second."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> StoppedClock:
        return cls(2025, 1, 31, 12, 0, 0, tzinfo=tz)


def test_photos_of_two_starts_at_the_same_time_do_not_replace_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.camera.recorder.datetime", StoppedClock)
    for _ in range(2):
        record(tmp_path / "roses", [float(second) for second in range(30)])
    assert len(list((tmp_path / "roses").iterdir())) == 60


def test_a_name_that_exists_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.camera.recorder.datetime", StoppedClock)
    parts = iter([b"aaaa", b"part", b"bbbb", b"part"])  # of the photo, and of its partial file
    monkeypatch.setattr("os.urandom", lambda size: next(parts))
    first = tmp_path / "roses" / f"20250131T120000_000001_{b'aaaa'.hex()}.jpg"
    first.parent.mkdir()
    first.write_bytes(b"mine")
    assert "saved 1 photo" in record(first.parent, [1])[-1]
    assert first.read_bytes() == b"mine" and len(list(first.parent.iterdir())) == 2


def test_a_created_folder_without_a_photo_is_removed(tmp_path: Path) -> None:
    assert "saved 0 photos" in record(tmp_path / "new" / "roses", [])[-1]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    record(tmp_path / "empty", [])
    assert (tmp_path / "empty").is_dir()


def test_an_error_before_the_first_photo_is_the_last_message(tmp_path: Path) -> None:
    messages = list[str]()
    with pytest.raises(CameraError), PhotoRecorder(tmp_path / "roses", 1, 1, messages.append):
        raise CameraError("0: no such camera")
    assert messages == [] and list(tmp_path.iterdir()) == []


def test_an_error_after_a_photo_does_not_hide_how_many_were_saved(tmp_path: Path) -> None:
    messages = list[str]()
    with pytest.raises(CameraError), PhotoRecorder(tmp_path, 1, 1, messages.append) as recorder:
        recorder.save(lambda: plain(RED), 1)
        raise CameraError("0: no such camera")
    assert messages == [f"saved 1 photo in {tmp_path}"]


def test_a_folder_that_cannot_be_created_raises_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/roses"):
        record(tmp_path / "file" / "roses", [])


@pytest.mark.parametrize("delay", [0.0, 60.0])
def test_after_a_photo_that_cannot_be_written_others_are_tried(
    delay: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[Path]()

    def full_at_first(path: Path) -> AbstractContextManager[BinaryIO]:
        tried.append(path)
        if len(tried) < 4:
            raise OSError(28, "No space left on device")
        return atomic_create(path)

    record(tmp_path / "one", [1])
    size = next((tmp_path / "one").iterdir()).stat().st_size
    monkeypatch.setattr("runtime.camera.recorder.RETRY_DELAY", delay)
    monkeypatch.setattr("runtime.camera.recorder.atomic_create", full_at_first)
    first, *others = record(tmp_path / "roses", [1, 2, 3, 4, 5], max_mb=2.5 * size / 1e6)
    assert "no space left on device" in first
    if delay:
        assert len(tried) == 1 and others == [f"saved 0 photos in {tmp_path / 'roses'}"]
    else:
        assert "saved again" in others[0] and "saved 2 photos" in others[1] and len(others) == 2


def keys(folder: Path) -> list[str]:
    return sorted(path.stem.split("_")[-1] for path in folder.iterdir())


def test_a_full_sample_keeps_the_photos_with_the_smallest_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys are independent of the pictures, so the smallest ones are a uniform random sample."""
    drawn, urandom = list[str](), os.urandom

    def draw(count: int) -> bytes:
        data = urandom(count)
        if sys._getframe(1).f_code.co_name == "save":
            drawn.append(data.hex())
        return data

    monkeypatch.setattr("os.urandom", draw)
    folder, messages = tmp_path / "sample", list[str]()
    record(tmp_path / "one", [0])
    size = next((tmp_path / "one").iterdir()).stat().st_size
    for _ in range(2):  # the second start goes on with the sample
        with PhotoRecorder(folder, 0, 5.5 * size / 1e6, messages.append, sample=True) as recorder:
            for number in range(30):
                recorder.save(lambda: plain(RED), number)
    assert len(drawn) == 61 and keys(folder) == sorted(drawn[1:])[:5]
    assert messages == [f"saved a sample of 5 photos in {folder}"] * 2


def test_a_sample_encodes_no_picture_that_it_would_not_keep(tmp_path: Path) -> None:
    encoded = list[int]()
    record(tmp_path / "sample", [0])
    size = next((tmp_path / "sample").iterdir()).stat().st_size
    with PhotoRecorder(tmp_path / "sample", 0, 3.5 * size / 1e6, print, sample=True) as recorder:
        for number in range(300):
            recorder.save(lambda number=number: encoded.append(number) or plain(RED), number)
    # The expected number of entries is 3 (1 + ln 100), about 17; 60 has a probability below 1e-9.
    assert len(encoded) < 60


def test_a_picture_larger_than_the_sample_may_be_removes_no_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, messages = tmp_path / "sample", list[str]()
    record(tmp_path / "one", [0])
    size = next((tmp_path / "one").iterdir()).stat().st_size
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    with PhotoRecorder(folder, 0, 5.5 * size / 1e6, messages.append, sample=True) as recorder:
        for number in range(5):
            recorder.save(lambda: plain(RED), number)
        before = keys(folder)
        monkeypatch.setattr("os.urandom", bytes)  # the smallest key
        recorder.save(lambda: noise, 5)
        assert keys(folder) == before
    assert messages == [f"saved a sample of 5 photos in {folder}"]


def test_a_sample_continues_when_its_photos_were_removed(tmp_path: Path) -> None:
    record(tmp_path / "one", [0])
    size = next((tmp_path / "one").iterdir()).stat().st_size
    folder = tmp_path / "sample"
    with PhotoRecorder(folder, 0, 2.5 * size / 1e6, print, sample=True) as recorder:
        for number in range(200):
            recorder.save(lambda: plain(RED), number)
            for path in folder.iterdir():
                path.unlink()


def test_a_sample_removes_no_file_of_others(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jpg"
    mine.write_bytes(bytes(2000))
    messages = list[str]()
    with PhotoRecorder(tmp_path, 0, 0.0021, messages.append, sample=True) as recorder:
        recorder.save(lambda: plain(RED), 1)
    assert list(tmp_path.iterdir()) == [mine] and "--max-mb" in messages[0]


def test_a_sample_removes_no_photo_of_another_recorder(tmp_path: Path) -> None:
    record(tmp_path, [1, 2, 3])
    others = set(tmp_path.iterdir())
    size = next(iter(others)).stat().st_size
    with PhotoRecorder(tmp_path, 0, 5.5 * size / 1e6, lambda line: None, sample=True) as recorder:
        for number in range(9):
            recorder.save(lambda: plain(RED), number, float(number))
    assert others < set(tmp_path.iterdir())


def test_a_photo_has_no_interval_and_a_damaged_one_is_left_out(tmp_path: Path) -> None:
    def damaged() -> NDArray[np.uint8]:
        raise PictureError("is damaged")

    with PhotoRecorder(tmp_path, 1000, 1, print) as recorder:
        for number, get_pixels in enumerate([lambda: plain(RED), damaged, lambda: plain(RED)]):
            recorder.save(get_pixels, number)
    assert [path.name.split("_")[1] for path in sorted(tmp_path.iterdir())] == ["000000", "000002"]


def test_a_photo_that_is_slow_to_decode_delays_no_other(tmp_path: Path) -> None:
    is_decoding, other_is_saved = Event(), Event()
    waited = list[bool]()

    def decode_slowly() -> NDArray[np.uint8]:
        is_decoding.set()
        waited.append(other_is_saved.wait(PATIENCE))
        return plain(RED)

    with PhotoRecorder(tmp_path, 0.0, 1000, lambda line: None, sample=True) as recorder:
        slow = Thread(target=recorder.save, args=(decode_slowly, 1))
        slow.start()
        assert is_decoding.wait(PATIENCE)
        recorder.save(lambda: plain(RED), 2)
        other_is_saved.set()
        slow.join(PATIENCE)
    assert waited == [True] and len(list(tmp_path.iterdir())) == 2
