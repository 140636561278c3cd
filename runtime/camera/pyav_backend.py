"""Frames of USB cameras (V4L2, DirectShow, AVFoundation), network streams and clips, captured with PyAV."""

import errno
import os
import re
import struct
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.camera.raw_frame import FRAME_TIMEOUT, MAX_FRAME_PIXELS, RawFrame
from runtime.common.errors import CameraError

GIVE_VIDEO = "give a video file, an address or a camera's number"
STREAM_ENDED = "the stream ended: check the camera and the network"
# FFmpeg refuses a larger frame before it allocates memory for it.
LIMITS = {"max_pixels": str(MAX_FRAME_PIXELS)}
DEFAULT_RATE = 25  # frames per second of a clip that does not say it, as FFmpeg assumes
MAX_UNMATCHED_PACKETS = 100  # arrival times of packets that gave no frame


@dataclass(frozen=True)
class _Source:
    """A source as FFmpeg opens it."""

    url: str  # a device, an address or a path
    name: str  # `url` without its password
    driver: str = ""  # FFmpeg's input format for a device, else ""

    @property
    def is_address(self) -> bool:
        return not self.driver and "://" in self.url


def capture_pyav(source: str, name: str) -> Generator[RawFrame, None, None]:
    """Yields the frames of a device or stream as they arrive, and of a clip at its own pace.

    Returns at the end of a clip. Raises CameraError, also when a device or stream ends.
    """
    import av

    opened = _parse_source(source, name)
    try:
        container = _open_device(opened) if opened.driver else _open_stream(opened)
    except av.FFmpegError as error:
        raise CameraError(f"{name}: {_open_error(error, opened)}") from None
    with container:
        if not container.streams.video:
            raise CameraError(f"{name}: contains no video: {GIVE_VIDEO}")
        stream = container.streams.video[0]
        decoder = stream.codec_context
        decoder.options = LIMITS
        decoder.thread_type = "SLICE"  # one frame per thread would delay each frame by the number of threads
        is_clip = bool(container.duration) if opened.is_address else os.path.isfile(source)
        player = _ClipPlayer(1 / float(stream.guessed_rate or DEFAULT_RATE)) if is_clip else None
        packets = _read_packets(container, stream, opened)
        capture = _capture_intra_only if decoder.codec.intra_only else _capture_predicted
        is_empty = True
        for frame in capture(packets, decoder, player, opened):
            yield frame
            is_empty = False
    if is_clip and is_empty:
        raise CameraError(f"{name}: contains no frame that can be read: {GIVE_VIDEO}")
    if not is_clip:
        raise CameraError(f"{name}: {STREAM_ENDED}")


class _ClipPlayer:
    """Plays a clip in real time. A frame without a timestamp follows the last one by `interval` seconds."""

    def __init__(self, interval: float) -> None:
        self._interval, self._timestamp = interval, 0.0
        self._started: float | None = None  # the time.monotonic() of timestamp 0

    def wait(self, timed: Any) -> float:
        """Waits until a packet or frame is due; returns time.monotonic()."""
        self._timestamp += self._interval
        if timed.pts is not None and timed.time_base is not None:
            self._timestamp = float(timed.pts * timed.time_base)
        now = time.monotonic()
        if self._started is None or abs(self._started + self._timestamp - now) > FRAME_TIMEOUT:
            self._started = now - self._timestamp  # the first frame, or a jump in the timestamps
        time.sleep(max(0.0, self._started + self._timestamp - now))
        return time.monotonic()


def _read_packets(container: Any, stream: Any, source: _Source) -> Iterator[Any]:
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            raise CameraError(f"{source.name}: {_read_error(error, source)}") from None
        if packet is None:
            return
        yield packet


def _capture_intra_only(
    packets: Iterator[Any], decoder: Any, player: _ClipPlayer | None, source: _Source
) -> Iterator[RawFrame]:
    """Frames of a codec such as MJPEG: each packet is a whole frame, decoded only if it is used."""
    for packet in packets:
        arrived = _arrival_time(packet, source)
        if not packet.size:
            continue
        data = bytes(packet)  # V4L2 packets are kernel memory that the camera reuses
        captured_at = player.wait(packet) if player else arrived
        yield RawFrame(captured_at, lambda data=data: _decode_packet(decoder, data))  # type: ignore[misc]


def _capture_predicted(
    packets: Iterator[Any], decoder: Any, player: _ClipPlayer | None, source: _Source
) -> Iterator[RawFrame]:
    """Frames of a codec such as H.264: the decoder needs every packet."""
    import av

    arrival_times: dict[int | None, float] = {}
    for packet in packets:
        arrived = arrival_times[packet.pts] = _arrival_time(packet, source)
        try:
            frames = decoder.decode(packet)
        except av.FFmpegError:  # damaged; the decoder recovers at the next key frame
            continue
        for frame in frames:
            captured_at = player.wait(frame) if player else arrival_times.pop(frame.pts, arrived)
            yield RawFrame(captured_at, lambda frame=frame: _to_rgb(frame))  # type: ignore[misc]
        if player or len(arrival_times) > MAX_UNMATCHED_PACKETS:
            arrival_times.clear()


def _arrival_time(packet: Any, source: _Source) -> float:
    """Returns a device's kernel timestamp, else now, in time.monotonic() seconds."""
    now = time.monotonic()
    if not source.driver or packet.pts is None or packet.time_base is None:
        return now
    timestamp = float(packet.pts * packet.time_base)  # V4L2 uses the clock of time.monotonic()
    return timestamp if 0 <= now - timestamp < FRAME_TIMEOUT else now  # another system's clock


def _decode_packet(decoder: Any, data: bytes) -> NDArray[np.uint8]:
    """Decodes one packet to RGB, uint8 [h, w, 3]. Raises ValueError if it is damaged."""
    import av

    try:
        frames = decoder.decode(av.Packet(data))
    except av.FFmpegError:
        frames = []
    if not frames:
        raise ValueError("the frame is damaged")
    return _to_rgb(frames[-1])


def _to_rgb(frame: Any) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know the kind of other data, such as Exif
        return np.rot90(pixels, frame.rotation // 90)
    return _orient(pixels, bytes(matrix)) if matrix else pixels


def _orient(pixels: NDArray[np.uint8], matrix: bytes) -> NDArray[np.uint8]:
    """Turns and mirrors a frame as its display matrix says, such as in a clip of an upright phone.

    The matrix maps x to ax + cy and y to bx + dy. https://ffmpeg.org/doxygen/trunk/display_8h.html
    """
    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    right, down = a, d
    if abs(b) > abs(a):
        pixels, right, down = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


def _parse_source(source: str, name: str) -> _Source:
    """Finds out whether `source` is a device. Raises CameraError for a DirectShow number without a camera."""
    number = source if source.isascii() and source.isdigit() else ""
    if sys.platform == "darwin":
        return _Source(source, name, "avfoundation" if number else "")
    if sys.platform == "win32":
        if number:
            return _Source(f"video={_directshow_name(int(number))}", name, "dshow")
        return _Source(source, name, "dshow" if source.startswith("video=") else "")
    if number:
        return _Source(f"/dev/video{number}", name, "v4l2")
    return _Source(source, name, "v4l2" if re.match(r"/dev/(video|v4l/)", source) else "")


def _directshow_name(number: int) -> str:
    """Returns a camera's name: DirectShow does not number cameras."""
    import av

    names = [device.name for device in av.enumerate_input_devices("dshow") if "video" in device.media_types]
    if number >= len(names):
        raise CameraError(f"{number}: no such camera; {_available(names)}")
    return names[number]


def _open_stream(source: _Source) -> Any:
    import av

    if not source.is_address:
        # Without the prefix, 12:30.mp4 would name the protocol 12.
        return av.open(f"file:{source.url}", options=LIMITS)
    # RTSP over TCP: UDP loses packets, and routers block it. FFmpeg's own timeout, in microseconds: PyAV's
    # timeout calls back into Python, which crashes a process that is exiting.
    timeout = "timeout" if source.url.startswith(("rtsp", "http")) else "rw_timeout"
    options = {"rtsp_transport": "tcp", timeout: f"{FRAME_TIMEOUT * 1e6:.0f}"}
    return av.open(source.url, options=options | LIMITS)


def _open_device(source: _Source) -> Any:
    import av

    # USB 2 carries 30 compressed 720p frames a second, but only 10 raw ones.
    options = {"input_format": "mjpeg", "video_size": "1280x720", "framerate": "30"}
    if source.driver == "avfoundation":
        options = {"framerate": "30"}
    try:
        return av.open(source.url, format=source.driver, options=options | LIMITS)
    except av.FFmpegError as error:
        if error.errno not in (errno.EINVAL, errno.EIO):
            raise
    return av.open(source.url, format=source.driver, options=LIMITS)  # in the camera's default mode


def _open_error(error: Any, source: _Source) -> str:
    """Explains why a source does not open. FFmpeg's own text may hold the address with its password."""
    if source.driver and (reason := _device_error(error, source.url)):
        return reason
    if source.is_address and (reason := _network_error(error)):
        return reason
    if error.errno == errno.ETIMEDOUT:
        return f"sent no data for {FRAME_TIMEOUT:.0f} s: check its cable and network"
    if type(error).__name__ == "InvalidDataError":
        return f"is not a video: {GIVE_VIDEO}"
    reason = str(error.strerror or type(error).__name__).lower()
    return f"{reason}: {GIVE_VIDEO}" if error.errno in (errno.ENOENT, errno.EISDIR) else reason


def _read_error(error: Any, source: _Source) -> str:
    """Explains an error after the source was opened."""
    if error.errno in (errno.ENODEV, errno.EIO, errno.ENXIO):
        return "was unplugged: check its cable" if source.driver else STREAM_ENDED
    return _open_error(error, source)


def _device_error(error: Any, path: str) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTTY, errno.EIO):
        exists = not isinstance(error, FileNotFoundError) and Path(path).exists()
        return "is not a camera" if exists else f"no such camera; {_available(_v4l2_cameras())}"
    if error.errno == errno.EBUSY:
        return f"is in use by another program: stop that program (`fuser {path}` prints its number)"
    if error.errno in (errno.EACCES, errno.EPERM):
        group = _group_of(path)
        command = f"sudo usermod -aG {group} $USER"
        return f"permission denied: only the group {group} may use it: run {command}, then log in again"
    return ""


def _network_error(error: Any) -> str:
    kind = type(error).__name__
    if error.errno in (errno.EIO, errno.EHOSTUNREACH, errno.ENETUNREACH):  # EIO: the name has no address
        return "cannot be reached: check the host name and the network"
    if error.errno == errno.ECONNREFUSED:
        return "nothing answers at this address: check that the camera is on and that the port is right"
    if kind in ("HTTPUnauthorizedError", "HTTPForbiddenError"):
        return "rejects the user name or password: give them as rtsp://USER:PASSWORD@HOST/…"
    if kind == "HTTPNotFoundError":
        return "has no stream at this path: find the path in the camera's manual"
    return ""


def _group_of(path: str) -> str:
    try:
        return Path(path).group()
    except (OSError, KeyError, NotImplementedError):
        return "video"


def _v4l2_cameras() -> list[str]:
    """Linux's video devices with their names, such as "/dev/video0 (HD Webcam)"."""
    cameras = []
    for path in sorted(Path("/sys/class/video4linux").glob("video*"), key=lambda path: int(path.name[5:])):
        with suppress(OSError):
            cameras.append(f"/dev/{path.name} ({(path / 'name').read_text().strip()})")
    return cameras


def _available(cameras: list[str]) -> str:
    return f"available cameras: {', '.join(cameras)}" if cameras else "none is connected: check its cable"
