"""Camera, on frames that the test sends, and on two real clips."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.camera import camera
from runtime.camera.camera import Camera, Frame
from runtime.camera.raw_frame import FRAME_TIMEOUT
from runtime.common.errors import CameraError
from tests.helpers import PATIENCE, wait_for
from tests.runtime.camera.helpers import BLUE, RED, Clock, ScriptedBackend, plain

BITS = 10


def numbered(number: int) -> NDArray[np.uint8]:
    """A picture of ten vertical bars: the bits of a number."""
    pixels = np.zeros((48, 16 * BITS, 3), np.uint8)
    for bit in range(BITS):
        pixels[:, 16 * bit : 16 * bit + 16] = 255 * (number >> bit & 1)
    return pixels


def number_of(frame: Frame) -> int:
    middle = frame.pixels[24, 8::16].mean(axis=-1)
    return sum(1 << bit for bit in range(BITS) if middle[bit] > 127)


def test_a_slow_reader_gets_the_newest_frame_and_the_others_are_released(backend: ScriptedBackend) -> None:
    with backend.camera() as source:
        for _ in range(5):
            backend.put(plain(RED))
        wait_for(lambda: source.frame_count == 5)
        frame = source.newest()
        assert frame is not None and frame.number == 5
        assert sorted(backend.released) == [1, 2, 3, 4, 5] and backend.decoded == [5]
        assert source.newest(after=5, timeout=0.01) is None


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("avi", "mjpeg")])
def test_a_slow_reader_of_a_clip_never_gets_an_old_frame(
    write_clip: Callable[..., Path], tmp_path: Path, suffix: str, codec: str
) -> None:
    clip = write_clip(tmp_path / f"numbers.{suffix}", [numbered(n) for n in range(100)], 100, codec)
    last = newest = 0
    with Camera(str(clip)) as source:
        while frame := source.newest(last, timeout=PATIENCE):
            assert number_of(frame) == frame.number - 1 and frame.number >= newest
            last = frame.number
            time.sleep(0.2)  # 20 frames pass
            newest = source.frame_count
    assert last > 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The camera's clock: however busy the machine is, a frame gets old only when the test says so."""
    fake = Clock()
    monkeypatch.setattr(camera, "time", fake)
    return fake


def test_a_frame_older_than_max_age_is_skipped_for_the_next(backend: ScriptedBackend, clock: Clock) -> None:
    with backend.camera() as source:
        backend.put(plain(RED))
        wait_for(lambda: source.frame_count == 1)
        clock.sleep(0.05)
        assert source.newest(timeout=0, max_age=0.02) is None
        threading.Timer(0.05, backend.put, [plain(BLUE)]).start()
        frame = source.newest(max_age=0.02, timeout=PATIENCE)
        assert frame is not None and frame.number == 2


def test_the_last_frame_of_a_clip_is_returned_at_any_max_age(backend: ScriptedBackend, clock: Clock) -> None:
    with backend.camera() as source:
        backend.put(plain(RED))
        backend.end()
        wait_for(lambda: source.ended)
        clock.sleep(0.02)
        assert source.newest(max_age=0) is not None
        assert source.newest(after=1) is None


def test_two_readers_get_the_same_decoded_frame(backend: ScriptedBackend) -> None:
    with backend.camera() as source:
        backend.put(plain(RED))
        assert source.newest(timeout=PATIENCE) is source.newest() and backend.decoded == [1]


def test_a_damaged_frame_is_skipped(backend: ScriptedBackend) -> None:
    with backend.camera() as source:
        backend.put(None)
        assert source.newest(timeout=0.1) is None and not source.problem
        backend.put(plain(RED))
        frame = source.newest(timeout=PATIENCE)
        assert frame is not None and frame.number == 2 and backend.released == [1, 2]


@pytest.mark.parametrize("size", [(10, 2000), (2000, 10), (0, 0), (6000, 6000)])
def test_a_frame_of_a_size_that_no_picture_has_is_skipped(
    size: tuple[int, int], backend: ScriptedBackend
) -> None:
    with backend.camera() as source:
        backend.put(np.empty((*size, 3), np.uint8))
        assert source.newest(timeout=0.1) is None and not source.problem
        backend.put(plain(RED))
        frame = source.newest(timeout=PATIENCE)
        assert frame is not None and frame.number == 2


def test_a_camera_whose_frames_cannot_be_used_is_reported_and_may_recover(
    backend: ScriptedBackend, clock: Clock
) -> None:
    messages = list[str]()

    def send(source: Camera, pixels: NDArray[np.uint8] | None) -> None:
        """Sends a frame every quarter of FRAME_TIMEOUT, for longer than it."""
        for number in range(1, 7):
            backend.put(pixels)
            wait_for(lambda number=number: source.frame_count == number)
            assert source.newest(timeout=0) is None
            clock.sleep(FRAME_TIMEOUT / 4)

    with backend.camera(retry=True, on_message=messages.append) as source:
        send(source, plain(RED, (10, 2000)))
        assert source.problem.startswith("0: its picture is 2000 x 10 pixels: too narrow")
        backend.put(plain(RED))
        assert source.newest(timeout=PATIENCE) is not None and not source.problem
    assert len(messages) == 2 and messages[0].startswith(source.name) and messages[1] == "0: is back"
    with backend.camera() as source, pytest.raises(CameraError, match="its picture is damaged: check"):
        send(source, None)


def test_a_damaged_frame_before_and_after_a_loss_is_no_problem_of_the_settings(
    backend: ScriptedBackend, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A USB camera often sends one when its cable is pulled, and when it starts."""
    monkeypatch.setattr(camera, "RETRY_DELAY", 0.001)
    messages = list[str]()
    with backend.camera(retry=True, on_message=messages.append) as source:
        for number in (1, 2):
            backend.put(None)
            wait_for(lambda number=number: source.frame_count == number)
            assert source.newest(timeout=0) is None and not source.problem
            backend.fail(CameraError("0: was unplugged"))
            wait_for(lambda number=number: source.first_frame == number + 1)
            clock.sleep(10 * FRAME_TIMEOUT)
    assert not any("damaged" in message for message in messages)


def test_a_lost_camera_raises_its_error_and_forgets_its_frames(backend: ScriptedBackend) -> None:
    with backend.camera() as source:
        backend.put(plain(RED))
        assert source.newest(timeout=PATIENCE) is not None and source.first_frame == 1
        backend.fail(CameraError("0: was unplugged"))
        wait_for(lambda: source.problem == "0: was unplugged")
        assert source.first_frame == 2
        with pytest.raises(CameraError, match="0: was unplugged"):
            source.newest()


def test_with_retry_a_lost_camera_is_opened_again_and_reported_once(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera, "RETRY_DELAY", 0.001)
    messages = list[str]()
    with backend.camera(retry=True, on_message=messages.append) as source:
        for _ in range(3):
            backend.fail(CameraError("0: no such camera"))
        wait_for(lambda: backend.opened == 4)
        assert source.problem == "0: no such camera" and source.newest(timeout=0.01) is None
        backend.put(plain(RED))
        assert source.newest(timeout=PATIENCE) is not None and not source.problem
        wait_for(lambda: len(messages) == 2)
    assert "0: no such camera" in messages[0] and messages[1] == "0: is back"


@pytest.mark.parametrize(("address", "delays"), [("0", [1, 1, 1, 1]), ("rtsp://host/s", [1, 2, 3, 3])])
def test_the_delays_between_retries_double_for_addresses_alone(
    address: str, delays: list[float], backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera, "MAX_RETRY_DELAY", 3.0)
    waited = list[float]()
    with backend.camera(address, retry=True) as source:
        monkeypatch.setattr(source._closing, "wait", waited.append)
        for _ in range(4):
            backend.fail(CameraError("away"))
        wait_for(lambda: len(waited) == 4)
        backend.put(plain(RED))
        wait_for(lambda: source.frame_count == 1)
        backend.fail(CameraError("away"))
        wait_for(lambda: len(waited) == 5)
    assert waited == [*delays, 1]


def test_a_driver_that_hangs_is_reported_and_does_not_delay_the_end(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera, "FRAME_TIMEOUT", 0.02)
    with Camera("0") as source, pytest.raises(CameraError, match=r"^0: has been silent for 0 s"):
        for _ in range(100):
            source.newest(timeout=0.05)
    backend.end()
