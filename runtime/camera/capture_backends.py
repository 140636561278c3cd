"""Where a camera's frames come from: V4L2, DirectShow and AVFoundation devices, network streams and clips by
PyAV, and CSI cameras by picamera2. What is wrong with one is told in a line that says what to do.
"""

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.common.errors import CameraError

# Seconds that a camera may take to answer, and to send the next frame, before it counts as gone.
TIMEOUT = 10.0


@dataclass(frozen=True)
class RawFrame:
    """A frame as it came. Its pixels are made when someone wants them, and once."""

    taken: float  # time.monotonic() seconds
    pixels: Callable[[], NDArray[np.uint8]]  # [h, w, 3], RGB; raises ValueError when it came damaged
    drop: Callable[[], None] = lambda: None  # gives its memory back, with or without having made pixels


def require_backend(source: str) -> None:
    """Raises CameraError when the package that reads such a source is not installed."""
    if source == "picamera" and find_spec("picamera2") is None:
        raise CameraError(
            "picamera needs picamera2: sudo apt install python3-picamera2, and a virtual environment made by "
            "python3 -m venv --system-site-packages"
        )
    if source != "picamera" and find_spec("av") is None:
        raise CameraError("a camera needs PyAV: pip install 'vgg-edge[camera]'")


def open_source(source: str, name: str) -> Generator[RawFrame, None, None]:
    """Opens a source and gives its frames as they come, a clip's until it ends. Raises CameraError."""
    try:
        yield from _picamera_shots(name) if source == "picamera" else _av_shots(source, name)
    except CameraError:
        raise
    except Exception as error:  # a driver's own; it may hold the address, with its password
        raise CameraError(f"{name}: {_one_line(error).replace(source, name)}") from None


def _av_shots(source: str, name: str) -> Generator[RawFrame, None, None]:
    """What PyAV reads: a device, a stream, or a clip at its own pace."""
    import av

    device, address = _device(source), "://" in source
    try:
        container = _open_device(*device) if device else _open_stream(source)
    except av.FFmpegError as error:
        raise CameraError(f"{name}: {_why(error, device, address)}") from None
    with container:
        if not container.streams.video:
            raise CameraError(f"{name}: holds no pictures")
        stream = container.streams.video[0]
        decoder = stream.codec_context
        # Threads share a frame: if each had one of its own, as many frames would be held back.
        decoder.thread_type = "SLICE"
        clip = bool(container.duration) if address else os.path.isfile(source)
        pace = _Pace() if clip else None
        arrived: dict[int | None, float] = {}
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                raise CameraError(f"{name}: {_why_lost(error, device, address)}") from None
            if packet is None:
                break
            taken = _stamp(packet) if device else time.monotonic()
            if decoder.codec.intra_only:  # each frame stands alone: decoded if someone wants it
                if packet.size:
                    data = bytes(packet)  # a packet of V4L2 is the kernel's memory, and gone with the camera
                    taken = pace.turn(packet) if pace else taken
                    yield RawFrame(taken, lambda data=data: _decode(decoder, data))  # type: ignore[misc]
                continue
            arrived[packet.pts] = taken
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError:  # a damaged one; the next key frame mends it
                continue
            for frame in frames:
                taken = pace.turn(frame) if pace else arrived.pop(frame.pts, taken)
                yield RawFrame(taken, lambda frame=frame: _rgb(frame))  # type: ignore[misc]
            if pace or len(arrived) > 100:  # packets that gave no frame
                arrived.clear()
    if not clip:
        raise CameraError(f"{name}: has ended")


def _decode(decoder: Any, data: bytes) -> NDArray[np.uint8]:
    import av

    try:
        frames = decoder.decode(av.Packet(data))
    except av.FFmpegError:
        frames = []
    if not frames:
        raise ValueError("damaged")
    return _rgb(frames[-1])


def _rgb(frame: Any) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels, frame.rotation // 90) if frame.rotation else pixels  # a phone held upright


class _Pace:
    """Holds frames back until their turn comes."""

    def __init__(self) -> None:
        self._began: float | None = None

    def turn(self, timed: Any) -> float:
        """Waits for it; gives the time."""
        if timed.pts is not None and timed.time_base is not None:
            at, now = float(timed.pts * timed.time_base), time.monotonic()
            if self._began is None or abs(self._began + at - now) > TIMEOUT:  # the first, or after a gap
                self._began = now - at
            time.sleep(max(0.0, self._began + at - now))
        return time.monotonic()


def _stamp(packet: Any) -> float:
    """When the kernel got a device's frame: V4L2's stamps are by the clock of time.monotonic()."""
    now = time.monotonic()
    if packet.pts is None or packet.time_base is None:
        return now
    stamp = float(packet.pts * packet.time_base)
    return stamp if 0 <= now - stamp < TIMEOUT else now  # another clock, on another system


def _open_stream(source: str) -> Any:
    import av

    if "://" not in source:
        return av.open(f"file:{source}")  # without it, 12:30.mp4 would be of the protocol 12
    # RTSP over TCP: lost packets cost grey smears over UDP, and many a router lets none through. FFmpeg's own
    # time limit, in microseconds: PyAV's calls Python back, which crashes a process that is about to end.
    limit = "timeout" if source.startswith(("rtsp", "http")) else "rw_timeout"
    options = {"rtsp_transport": "tcp", "fflags": "nobuffer", limit: f"{TIMEOUT * 1e6:.0f}"}
    return av.open(source, options=options)


def _device(source: str) -> tuple[str, str] | None:
    """The device that a source names, as FFmpeg calls it, and FFmpeg's driver; None when it names none."""
    number = source if source.isascii() and source.isdigit() else ""
    if sys.platform == "darwin":
        return (number, "avfoundation") if number else None
    if sys.platform == "win32":
        if source.startswith("video="):
            return source, "dshow"
        return _directshow(int(number)) if number else None
    if number:
        return f"/dev/video{number}", "v4l2"
    return (source, "v4l2") if re.match(r"/dev/(video|v4l/)", source) else None


def _directshow(number: int) -> tuple[str, str]:
    """DirectShow knows cameras by name alone."""
    import av

    names = [found.name for found in av.enumerate_input_devices("dshow") if "video" in found.media_types]
    if number >= len(names):
        raise CameraError(f"{number}: no such camera; {_listed(names)}")
    return f"video={names[number]}", "dshow"


def _open_device(device: str, driver: str) -> Any:
    import av

    # Compressed, 720p fits through USB 2 thirty times a second; raw it would be ten.
    wished = {"input_format": "mjpeg", "video_size": "1280x720", "framerate": "30"}
    if driver == "avfoundation":
        wished = {"framerate": "30"}
    try:
        return av.open(device, format=driver, options=wished)
    except av.FFmpegError as error:
        if error.errno not in (errno.EINVAL, errno.EIO):
            raise
    return av.open(device, format=driver)  # as the camera likes


def _why(error: Any, device: tuple[str, str] | None, address: bool) -> str:
    """What to do about an error of FFmpeg's. Its own text would hold the address with the password."""
    code = error.errno
    kind = type(error).__name__
    if device:
        path = device[0]
        if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTTY, errno.EIO):
            there = not isinstance(error, FileNotFoundError) and Path(path).exists()
            return "is no camera" if there else f"no such camera; {_listed(_video_devices())}"
        if code == errno.EBUSY:
            return f"is in use by another program: end that one (fuser {path} tells which)"
        if code in (errno.EACCES, errno.EPERM):
            group = _group(path)
            add = f"sudo usermod -aG {group} $USER"
            return f"permission refused: only the group {group} may use it: {add}, then log in again"
    if code in (errno.EACCES, errno.EPERM):
        return "permission refused"
    if address and code in (errno.EIO, errno.EHOSTUNREACH, errno.ENETUNREACH):  # EIO: no such name
        return "is not found, or cannot be reached: look at its name and at the network"
    if "HTTPUnauthorized" in kind or "HTTPForbidden" in kind:
        return "refuses this user and password: give them as rtsp://USER:PASSWORD@HOST/…"
    if "HTTPNotFound" in kind:
        return "no such stream on that camera: look up its path in the manual"
    if code == errno.ECONNREFUSED:
        return "nothing answers at this address: is the camera on, and is the port right?"
    if code == errno.ETIMEDOUT:
        return f"gave nothing for {TIMEOUT:.0f} s: look at its cable and its network"
    if kind == "InvalidDataError":
        return "gives no video"
    return str(error.strerror or kind).lower()


def _why_lost(error: Any, device: tuple[str, str] | None, address: bool) -> str:
    """The same of an error after the first frame."""
    if error.errno in (errno.ENODEV, errno.EIO, errno.ENXIO):
        return "was unplugged: look at its cable" if device else "has ended"
    return _why(error, device, address)


def _group(path: str) -> str:
    try:
        return Path(path).group()
    except (OSError, KeyError, NotImplementedError):
        return "video"


def _video_devices() -> list[str]:
    """Linux's, with their names."""
    found = []
    for path in sorted(Path("/sys/class/video4linux").glob("video*"), key=lambda path: int(path.name[5:])):
        with suppress(OSError):
            found.append(f"/dev/{path.name} ({(path / 'name').read_text().strip()})")
    return found


def _listed(names: list[str]) -> str:
    return f"there are: {', '.join(names)}" if names else "none is connected: look at its cable"


def _picamera_shots(name: str) -> Generator[RawFrame, None, None]:
    """A CSI camera by picamera2 (Raspberry Pi, "The Picamera2 Library", sections 4.2 and 6.1)."""
    try:
        from picamera2 import Picamera2

        camera = Picamera2()
    except IndexError:  # what it raises when there is none
        raise CameraError(
            f"{name}: no camera found: look at its ribbon cable; rpicam-hello shows if it works"
        ) from None
    except RuntimeError as error:
        raise CameraError(f"{name}: {_one_line(error)}: is another program using it?") from None
    try:
        camera.configure(camera.create_video_configuration(main={"format": "RGB888", "size": (1280, 720)}))
        camera.start()
        # What it settled on. The names tell the order in a register, which is the reverse of memory's.
        format = camera.camera_configuration()["main"]["format"]
        while True:
            request = camera.capture_request(wait=TIMEOUT)
            yield RawFrame(
                _sensor_time(request.get_metadata()),
                lambda request=request: _channels(request.make_array("main"), format),  # type: ignore[misc]
                request.release,
            )
    except TimeoutError:
        raise CameraError(f"{name}: gave nothing for {TIMEOUT:.0f} s: look at its ribbon cable") from None
    finally:
        camera.close()


def _channels(pixels: NDArray[np.uint8], format: str) -> NDArray[np.uint8]:
    """uint8 [h, w, 3 or 4] of picamera2 as RGB."""
    return np.ascontiguousarray(pixels[..., :3][..., :: -1 if format in ("RGB888", "XRGB8888") else 1])


def _sensor_time(metadata: dict[str, Any]) -> float:
    """When the sensor began to read the frame out; libcamera's stamps are CLOCK_BOOTTIME's nanoseconds."""
    now = time.monotonic()
    stamp = metadata.get("SensorTimestamp")
    if stamp is None:
        return now
    age: float = time.clock_gettime(time.CLOCK_BOOTTIME) - stamp / 1e9
    return now - max(0.0, age)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
