"""The capture backends, on clips, an MJPEG server, and stand-ins of devices."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.camera import capture_backends, pyav_backend
from runtime.camera.camera import Camera
from runtime.camera.capture_backends import open_source
from runtime.common.errors import CameraError
from tests.helpers import PATIENCE, wait_for
from tests.runtime.camera.helpers import BLUE, GREEN, RED, Clock, jpeg, mjpeg_server, plain

COLORS = {RED: "red", GREEN: "green", BLUE: "blue"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(pyav_backend, "time", fake)
    return fake


def color_of(pixels: NDArray[np.uint8]) -> str:
    mean = pixels.mean(axis=(0, 1))
    return min(COLORS.items(), key=lambda item: np.abs(mean - item[0]).sum())[1]


@pytest.mark.parametrize("kind", ["h264", "mjpeg", "mpegts", "raw"])
def test_a_clip_has_its_colors_and_its_pace(clips: dict[str, Path], kind: str, clock: Clock) -> None:
    frames = [(color_of(raw.decode()), raw.captured_at) for raw in open_source(str(clips[kind]), "the clip")]
    assert [color for color, _ in frames] == ["red"] * 10 + ["green"] * 10 + ["blue"] * 10
    assert np.diff([at for _, at in frames]) == pytest.approx(1 / 30, abs=0.002)


def test_a_clip_may_pause_for_longer_than_a_camera(
    write_clip: Callable[..., Path], tmp_path: Path, clock: Clock
) -> None:
    clip = write_clip(tmp_path / "lapse.avi", [plain(RED)] * 3, Fraction(1, 60), "mjpeg")
    assert len(list(open_source(str(clip), "the clip"))) == 3
    assert max(clock.slept) < 10


def test_a_colon_in_the_name_of_a_clip_is_no_protocol(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("12:30:05.mp4").write_bytes(clips["h264"].read_bytes())
    assert len(list(open_source("12:30:05.mp4", "the clip"))) == 30


@pytest.mark.parametrize(
    ("matrix", "size", "corner"),
    [
        ((1, 0, 0, 1), (48, 64), (0, 0)),
        ((-1, 0, 0, 1), (48, 64), (0, 1)),  # mirrored, as a front camera may record
        ((1, 0, 0, -1), (48, 64), (1, 0)),
        ((-1, 0, 0, -1), (48, 64), (1, 1)),
        ((0, 1, 1, 0), (64, 48), (0, 0)),
        ((0, 1, -1, 0), (64, 48), (0, 1)),  # an upright phone
        ((0, -1, 1, 0), (64, 48), (1, 0)),
        ((0, -1, -1, 0), (64, 48), (1, 1)),
    ],
)
def test_a_clip_is_turned_and_mirrored_as_its_matrix_says(
    matrix: tuple[int, int, int, int],
    size: tuple[int, int],
    corner: tuple[int, int],
    write_clip: Callable[..., Path],
    tmp_path: Path,
) -> None:
    pixels = plain((0, 0, 0))
    pixels[:24, :32] = RED  # the quarter at the top left
    clip = write_clip(tmp_path / "phone.mp4", [pixels] * 5, 10)
    data = clip.read_bytes()
    at = data.index(b"tkhd") + 44  # the track's matrix (ISO/IEC 14496-12, 8.3.2)
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in matrix)
    clip.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
    red = next(open_source(str(clip), "the clip")).decode()[..., 0]
    assert red.shape == size
    quarters = red.reshape(2, size[0] // 2, 2, size[1] // 2).mean(axis=(1, 3))
    assert np.argwhere(quarters > 150).tolist() == [list(corner)]


# Reads two frames and prints their sizes and the peak of the process's memory.
READ = """
import re, sys
from runtime.camera.camera import Camera
with Camera(sys.argv[1]) as source:
    frames = [source.newest(timeout=200), source.newest(after=10, timeout=200)]
    print(*(frame.pixels.shape[:2] for frame in frames))
    print(*re.findall(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux reports it")
@pytest.mark.parametrize("first", [0, 1])
def test_a_frame_of_256_megapixels_takes_no_memory(first: int) -> None:
    """It took 2.2 GB."""
    small = jpeg(plain(RED))
    large = bytearray(small)  # the same data, in a header of another size
    at = large.index(b"\xff\xc0")
    large[at + 5 : at + 9] = struct.pack(">HH", 16_000, 16_000)
    with mjpeg_server(lambda number: bytes(large) if number % 2 == first else small) as server:
        run = [sys.executable, "-c", READ, server.address]
        sizes, kilobytes = subprocess.run(run, capture_output=True, check=True, text=True).stdout.splitlines()
    assert sizes == "(48, 64) (48, 64)"
    assert int(kilobytes) < 200_000


def test_the_first_frames_of_an_address_are_not_lost(clips: dict[str, Path], clock: Clock) -> None:
    """FFmpeg reads them to find out what the stream holds; a short clip has no others."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(clips["h264"].parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{clips['h264'].name}"
        assert len(list(open_source(address, "the clip"))) == 30
        server.shutdown()


def test_an_address_longer_than_a_path_opens() -> None:
    red = jpeg(plain(RED))
    with mjpeg_server(lambda number: red) as server, Camera(f"{server.address}?token={'x' * 5000}") as source:
        assert source.newest(timeout=PATIENCE) is not None


def test_a_stream_gets_its_password_and_its_error_does_not_repeat_it() -> None:
    with mjpeg_server(lambda number: jpeg(plain(RED)), user="user:geheim") as server:
        address = server.address.replace("http://", "http://user:geheim@") + "?token=1"
        with Camera(address) as source:
            assert source.newest(timeout=PATIENCE) is not None
        assert set(server.paths) == {"/video?token=1"}
        wrong = address.replace("geheim", "falsch")
        with Camera(wrong) as source, pytest.raises(CameraError, match="password") as caught:
            source.newest(timeout=PATIENCE)
        assert "falsch" not in str(caught.value)


def test_a_stream_that_falls_silent_raises_camera_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyav_backend, "FRAME_TIMEOUT", 2.0)  # the frames before come within it
    resumed = threading.Event()

    def send(number: int) -> bytes:
        if number == 20:
            resumed.wait(PATIENCE)
        return jpeg(plain(RED))

    with mjpeg_server(send) as server, Camera(server.address) as source:
        last = 0
        with pytest.raises(CameraError, match="sent no data for 2 s"):
            while True:
                frame = source.newest(last)
                last = frame.number if frame else last
        resumed.set()
    assert last > 0


def test_a_stream_that_ends_raises_camera_error() -> None:
    red = jpeg(plain(RED))
    with mjpeg_server(lambda number: red if number < 30 else None) as server:
        frames = open_source(server.address, "the camera")
        with pytest.raises(CameraError, match=r"^the camera: the stream ended"):
            list(frames)


def test_a_closed_port_is_named_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(CameraError, match="nothing answers"):
        next(open_source(f"rtsp://127.0.0.1:{port}/s", "the camera"))


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("none.mp4", "no such file or directory"),
        (".", "is a directory"),
        ("notes.mp4", "is not a video"),
        ("sound.wav", "contains no video"),
        ("cut.mkv", "contains no frame that can be read"),
    ],
)
def test_a_file_without_video_raises_camera_error(
    name: str, fact: str, make_clip: Callable[..., Path], tmp_path: Path
) -> None:
    whole = make_clip(tmp_path / "cut.mkv", [("red", 30)]).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(
        whole[: whole.index(bytes.fromhex("1f43b675")) + 12]
    )  # the first cluster
    (tmp_path / "notes.mp4").write_text("no video" * 100)
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(CameraError, match=f"^its name: .*{fact}"):
        next(open_source(str(tmp_path / name), "its name"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="V4L2's names")
def test_the_error_of_a_device_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    device = pyav_backend._parse_source("0", "0")
    assert (device.url, device.driver) == ("/dev/video0", "v4l2")

    def reason(kind: type[Exception], code: int) -> str:
        return pyav_backend._open_error(kind(code, os.strerror(code), device.url), device)

    monkeypatch.setattr(pyav_backend, "_v4l2_cameras", lambda: ["/dev/video3 (HD Webcam)"])
    assert "/dev/video3 (HD Webcam)" in reason(av.error.FileNotFoundError, 2)
    assert "fuser /dev/video0" in reason(av.error.OSError, 16)
    denied = reason(av.error.PermissionError, 13)
    assert "group video" in denied and "sudo usermod -aG video $USER" in denied
    monkeypatch.setattr(pyav_backend, "_v4l2_cameras", list)
    assert "check its cable" in reason(av.error.OSError, 19)


@pytest.mark.parametrize(
    ("format", "channels"), [("RGB888", 3), ("XRGB8888", 4), ("BGR888", 3), ("XBGR8888", 4)]
)
def test_picamera2_frames_come_out_in_rgb(  # noqa: C901 (a fake camera with one-line methods)
    format: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in does what picamera2 documents: its arrays have the reverse order of the format's name."""
    released, closed = list[int](), list[bool]()

    class Request:
        def __init__(self, number: int) -> None:
            self.number = number

        def make_array(self, name: str) -> NDArray[np.uint8]:
            assert name == "main" and self.number not in released
            pixels = np.zeros((48, 64, channels), np.uint8)
            pixels[..., 2 if format in ("RGB888", "XRGB8888") else 0] = 255  # red
            return pixels

        def get_metadata(self) -> dict[str, int]:
            return {"SensorTimestamp": time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 20_000_000}

        def release(self) -> None:
            assert self.number not in released
            released.append(self.number)

    class Picamera2:
        number = 0

        def create_video_configuration(self, main: dict[str, object]) -> dict[str, object]:
            return main

        def configure(self, main: dict[str, object]) -> None: ...
        def start(self) -> None: ...
        def camera_configuration(self) -> dict[str, dict[str, str]]:
            return {"main": {"format": format}}

        def capture_request(self, wait: float) -> Request:
            self.number += 1
            if self.number > 20:
                raise TimeoutError
            time.sleep(0.005)
            return Request(self.number)

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setitem(
        sys.modules, "picamera2", SimpleNamespace(Picamera2=Picamera2, __spec__=SimpleNamespace())
    )
    with Camera("picamera") as source, pytest.raises(CameraError, match="ribbon cable"):
        last = 0
        while frame := source.newest(last, timeout=PATIENCE):
            last = frame.number
            assert frame.pixels.shape == (48, 64, 3) and tuple(frame.pixels[0, 0]) == RED
            assert time.monotonic() - frame.captured_at >= 0.02
    assert last > 0 and closed == [True] and sorted(released) == list(range(1, 21))


def test_a_usb_camera_that_picamera2_finds_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arrays of YUYV have two channels, which would be classified as a grey picture."""
    found = MagicMock()
    found.camera_configuration.return_value = {"main": {"format": "YUYV"}}
    found.capture_request.return_value.get_metadata.return_value = {}
    found.capture_request.return_value.make_array.return_value = np.zeros((48, 64, 2), np.uint8)
    monkeypatch.setitem(
        sys.modules, "picamera2", SimpleNamespace(Picamera2=lambda: found, __spec__=SimpleNamespace())
    )
    with Camera("picamera") as source, pytest.raises(CameraError, match="YUYV"):
        assert source.newest(timeout=PATIENCE) is None
    found.close.assert_called_once()


def test_a_camera_that_takes_no_buffer_back_is_reported_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """libcamera refuses the buffer when the camera is gone."""
    request, found = MagicMock(), MagicMock()
    request.get_metadata.return_value = {}
    request.release.side_effect = RuntimeError("Failed to queue request")
    found.camera_configuration.return_value = {"main": {"format": "RGB888"}}
    found.capture_request.side_effect = [request, request, request, TimeoutError]
    monkeypatch.setitem(
        sys.modules, "picamera2", SimpleNamespace(Picamera2=lambda: found, __spec__=SimpleNamespace())
    )
    with Camera("picamera") as source, pytest.raises(CameraError, match="ribbon cable"):
        wait_for(lambda: source.problem)
        source.newest()


@pytest.mark.parametrize(
    ("source", "command"),
    [("0", "pip install '.[camera]'"), ("picamera", "sudo apt install python3-picamera2")],
)
def test_a_missing_package_raises_camera_error_with_the_command_that_installs_it(
    source: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_backends, "find_spec", lambda name: None)
    with pytest.raises(CameraError) as caught:
        Camera(source)
    assert command in str(caught.value)
