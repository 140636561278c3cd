"""A camera's newest frame, and what a model sees on it: a USB or CSI camera, a network stream, or a clip.

One thread reads the camera and keeps its newest frame alone: frames that nobody took in time are dropped,
never queued. `sights` is the loop that classifies them.
"""

import errno
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from math import exp, inf
from pathlib import Path
from threading import Condition, Event, Lock, Thread
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.classify import Answer, Classifier, Prediction
from runtime.errors import UserError
from runtime.live import LiveClassifier
from runtime.picture import read_picture

# Seconds that a camera may take to answer, and to send the next frame, before it counts as gone.
TIMEOUT = 10.0
# With `retry`, seconds between tries. Those of an address double: cameras lock out who knocks too often.
RETRY_AFTER = 1.0
RETRY_AFTER_AT_MOST = 30.0

SMOOTH_SECONDS = 0.5


class CameraError(UserError):
    """A camera that is not there, not allowed, not free, or that went away."""


@dataclass(frozen=True)
class Frame:
    """One picture of a camera."""

    pixels: NDArray[np.uint8]  # [h, w, 3], RGB, upright
    taken: float  # time.monotonic() seconds: the kernel's stamp of a V4L2 or CSI frame, else its arrival here
    number: int  # from 1 on, counting those that were dropped
    decode_ms: float = 0.0  # what it took to make the pixels


@dataclass(frozen=True)
class Sight:
    """What a model saw on a frame."""

    frame: Frame
    prediction: Prediction  # of the smoothed probabilities
    age_ms: float  # from `frame.taken` to when the answer was there
    fps: float  # answers a second, over the last ten
    dropped: int  # frames that came and were not looked at, so far


def over_seconds(seconds: float) -> Callable[[float], float]:
    """An exponential average of this time constant: a new answer's weight, by the seconds since the last."""
    return lambda since: 1 - exp(-since / seconds) if seconds > 0 else 1.0


SMOOTH = over_seconds(SMOOTH_SECONDS)


def over_frames(frames: float) -> Callable[[float], float]:
    """An exponential average that lags as much as the mean of so many frames: a new answer's weight."""
    return lambda since: 2 / (max(1.0, frames) + 1)


def sights(
    camera: "Camera",
    live: LiveClassifier,
    *,
    every: float = 0.0,
    smooth: Callable[[float], float] = SMOOTH,
) -> Iterator[Sight]:
    """Classifies the newest frame, again and again, at most once in `every` seconds, until a clip ends.

    The engine starts on a frame that is at most one frame interval old, as long as making pixels of it takes
    no longer. `smooth` gives the weight of a new answer, 0-1. While a camera with `retry` is away, it waits.
    Raises CameraError, EngineError.
    """
    last, dropped, due = 0, 0, time.monotonic()
    preparing = 0.0  # the seconds that it last took to make the model's pixels of a frame
    answered: deque[float] = deque(maxlen=10)
    classifier: Classifier | None = None
    average: Answer | None = None
    while True:
        time.sleep(max(0.0, due - time.monotonic()))
        frame = camera.newest(last, timeout=1.0, within=max(0.0, camera.interval - preparing))
        if frame is None:
            if camera.ended:
                return
            continue
        began = time.monotonic()
        due += every
        if due < began:  # late, or the first: no second answer to make up for it
            due = began + every
        dropped += frame.number - last - 1
        last = frame.number
        if (now := live.now()) is not classifier:  # another model's probabilities are of other classes
            classifier, average = now, None
        pixels = read_picture(frame.pixels, classifier.model.contract.input_size)
        preparing = frame.decode_ms / 1000 + time.monotonic() - began
        answer = classifier.infer(pixels)
        ready = time.monotonic()
        average = _mean(average, answer, smooth(ready - answered[-1]) if answered else 1.0)
        answered.append(ready)
        span = ready - answered[0]
        yield Sight(
            frame=frame,
            prediction=classifier.tell(camera.name, average, 1000 * preparing),
            age_ms=round(1000 * (ready - frame.taken), 1),
            fps=round((len(answered) - 1) / span, 1) if span else 0.0,
            dropped=dropped,
        )


def _mean(old: Answer | None, new: Answer, weight: float) -> Answer:
    if old is None:
        return new
    known = None
    if new.known is not None and old.known is not None:
        known = old.known + weight * (new.known - old.known)
    probabilities = old.probabilities + np.float32(weight) * (new.probabilities - old.probabilities)
    return Answer(probabilities, known, new.ms)


@dataclass(frozen=True)
class _Shot:
    """A frame as it came. Its pixels are made of it when someone wants them, and once."""

    taken: float
    pixels: Callable[[], NDArray[np.uint8]]  # raises ValueError when it came damaged
    drop: Callable[[], None] = lambda: None


class Camera:
    """`source` is a number or device (`0`, `/dev/video2`), `picamera`, a stream's address, or a clip's path.

    A context manager: inside, a thread reads the camera. `retry` waits for a camera that is away or goes
    away, and `say` gets a line when it does and when it is back. `name` is the source without its password,
    `problem` is one line while the camera is away, `ended` is true after a clip's last frame. Raises
    CameraError when PyAV or picamera2 is missing.
    """

    def __init__(
        self, source: str, *, retry: bool = False, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.source, self.name = source, hide_password(source)
        self.problem = ""
        self.ended = False
        self._retry, self._say = retry, say
        self._changed = Condition()
        self._shot: tuple[int, float, _Shot] | None = None  # number, when it came; the newest, not yet taken
        self._frame: Frame | None = None  # the newest that was
        self._developing = Lock()
        self._arrivals: deque[float] = deque(maxlen=30)
        self._count = 0
        self._error: CameraError | None = None
        self._closing = Event()
        self._heard = time.monotonic()  # the last sign of life of the reader
        need("picamera2" if source == "picamera" else "av")
        self._reader = Thread(target=self._read, name="camera", daemon=True)

    def __enter__(self) -> "Camera":
        self._heard = time.monotonic()
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        # One that hangs in connect() is left behind: it is a daemon, and holds up nobody.
        self._reader.join(0.3)

    def newest(self, after: int = 0, timeout: float = 1.0, *, within: float = inf) -> Frame | None:
        """The newest frame with a number over `after`, waited for up to `timeout` seconds; None without one.

        One that came more than `within` seconds ago is passed over for the next. Raises CameraError, unless
        with `retry`.
        """
        until = time.monotonic() + timeout
        while True:
            with self._changed:
                while (found := self._find(after, within)) is None:
                    if self._error:
                        raise self._error
                    left = until - time.monotonic()
                    if self.ended or self._closing.is_set() or left <= 0:
                        return None
                    self._changed.wait(left)
                    self._check_silence()
                if isinstance(found, Frame):
                    return found
                number, _, shot = found
                self._shot = None
            with self._developing:
                try:
                    began = time.perf_counter()
                    pixels = shot.pixels()
                    frame = Frame(pixels, shot.taken, number, 1000 * (time.perf_counter() - began))
                except ValueError:  # USB cameras do send damaged ones
                    continue
                finally:
                    shot.drop()
                with self._changed:
                    if self._frame is None or self._frame.number < number:
                        self._frame = frame
            return frame

    def _find(self, after: int, within: float) -> Frame | tuple[int, float, _Shot] | None:
        if self._shot is not None:
            lain = time.monotonic() - self._shot[1]
            # A thread takes a moment to wake. After a clip's last frame there is no fresher one to wait for.
            limit = max(self.interval, 0.1) if self.ended else max(within, 0.005)
            return self._shot if lain <= limit else None
        return self._frame if self._frame is not None and self._frame.number > after else None

    @property
    def interval(self) -> float:
        """Seconds from frame to frame, as they come; 0 before there are two."""
        came = self._arrivals
        return (came[-1] - came[0]) / (len(came) - 1) if len(came) > 1 else 0.0

    def _check_silence(self) -> None:
        """The libraries' own time limits do not reach into every driver."""
        silent = time.monotonic() - self._heard
        if silent > 2 * TIMEOUT and not self.problem:
            self._fail(CameraError(f"{self.name}: has been silent for {silent:.0f} s: look at its cable"))

    def _read(self) -> None:
        wait = RETRY_AFTER
        while not self._closing.is_set():
            self._heard = time.monotonic()
            try:
                with closing(self._shots()) as shots:
                    for shot in shots:
                        self._put(shot)
                        wait = RETRY_AFTER
                        if self._closing.is_set():
                            break
                    else:
                        self._end()
                        return
            except CameraError as error:
                self._fail(error)
            except Exception as error:  # a driver's own
                self._fail(CameraError(f"{self.name}: {_one_line(error)}"))
            if not self._retry:
                return
            self._closing.wait(wait)
            wait = min(2 * wait, RETRY_AFTER_AT_MOST) if "://" in self.source else wait

    def _shots(self) -> Generator[_Shot, None, None]:
        return _picamera_shots(self.name) if self.source == "picamera" else _av_shots(self.source, self.name)

    def _put(self, shot: _Shot) -> None:
        with self._changed:
            old, now = self._shot, time.monotonic()
            self._count += 1
            self._shot = self._count, now, shot
            self._arrivals.append(now)
            self._heard = now
            back, self.problem = bool(self.problem), ""
            self._changed.notify_all()
        if old is not None:
            old[2].drop()
        if back:
            self._say(f"{self.name}: is back")

    def _end(self) -> None:
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def _fail(self, error: CameraError) -> None:
        with self._changed:
            told, self.problem = self.problem, str(error)
            self._arrivals.clear()
            if not self._retry:
                self._error = error
            self._changed.notify_all()
        if self._retry and told != self.problem:
            self._say(f"{self.problem} (trying again until it is back)")


def need(module: str) -> None:
    """Raises CameraError when the package that reads this kind of camera is not installed."""
    if find_spec(module) is None:
        raise CameraError(
            {
                "av": "a camera needs PyAV: pip install 'vgg-edge[camera]'",
                "picamera2": "picamera needs picamera2: sudo apt install python3-picamera2, and a virtual "
                "environment made by python3 -m venv --system-site-packages",
            }[module]
        )


def hide_password(source: str) -> str:
    """An address as it may be shown: without its password, and without the values in its path and query.

    Nothing before the last @ is shown but the user, for a password may hold an unescaped / or @.
    """
    scheme, found, rest = source.partition("://")
    if not found:
        return source
    user, at, place = rest.rpartition("@")
    who = f"{user.partition(':')[0]}:***@" if ":" in user else "***@" if at else ""
    path, asked, query = place.partition("?")
    if asked and "=" not in query:
        query = "***"
    return f"{scheme}://{who}{_VALUE.sub('=***', path + asked + query)}"


_VALUE = re.compile("=[^&;/?]*")


def _av_shots(source: str, name: str) -> Generator[_Shot, None, None]:
    """What PyAV reads: a device, a stream, or a clip at its own pace."""
    import av

    device = _device(source)
    try:
        container = _open_device(*device) if device else _open_stream(source)
    except av.FFmpegError as error:
        raise CameraError(f"{name}: {_why(error, device)}") from None
    with container:
        if not container.streams.video:
            raise CameraError(f"{name}: holds no pictures")
        stream = container.streams.video[0]
        decoder = stream.codec_context
        # Threads share a frame: if each had one of its own, as many frames would be held back.
        decoder.thread_type = "SLICE"
        clip = _is_clip(source) or ("://" in source and bool(container.duration))
        pace = _Pace() if clip else None
        arrived: dict[int | None, float] = {}
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                raise CameraError(f"{name}: {_why_lost(error, device)}") from None
            if packet is None:
                break
            taken = _stamp(packet) if device else time.monotonic()
            if decoder.codec.intra_only:  # each frame stands alone: decoded if someone wants it
                if packet.size:
                    data = bytes(packet)  # a packet of V4L2 is the kernel's memory, and gone with the camera
                    taken = pace.turn(packet) if pace else taken
                    yield _Shot(taken, lambda data=data: _decode(decoder, data))  # type: ignore[misc]
                continue
            arrived[packet.pts] = taken
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError:  # a damaged one; the next key frame mends it
                continue
            for frame in frames:
                taken = pace.turn(frame) if pace else arrived.pop(frame.pts, taken)
                yield _Shot(taken, lambda frame=frame: _rgb(frame))  # type: ignore[misc]
            if pace or len(arrived) > 100:  # packets that gave no frame
                arrived.clear()
    if not clip:
        raise CameraError(f"{name}: has ended")


def _decode(decoder: Any, data: bytes) -> NDArray[np.uint8]:
    import av

    frames = decoder.decode(av.Packet(data))
    if not frames:
        raise ValueError("holds no picture")
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
            if self._began is None:
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


def _is_clip(source: str) -> bool:
    return Path(source).is_file()


def _open_stream(source: str) -> Any:
    import av

    if "://" not in source:
        return av.open(source)
    # RTSP over TCP: lost packets cost grey smears over UDP, and many a router lets none through. FFmpeg's own
    # time limit, in microseconds: PyAV's calls Python back, which crashes a process that is about to end.
    timeout = f"{TIMEOUT * 1e6:.0f}"
    return av.open(source, options={"rtsp_transport": "tcp", "fflags": "nobuffer", "timeout": timeout})


def _device(source: str) -> tuple[str, str] | None:
    """The device that a source names, as FFmpeg calls it, and FFmpeg's driver; None when it names none."""
    number = source if source.isascii() and source.isdigit() else ""
    if sys.platform == "darwin":
        return (number, "avfoundation") if number else None
    if sys.platform == "win32":
        return (
            (source, "dshow") if source.startswith("video=") else _directshow(int(number)) if number else None
        )
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


def _why(error: Any, device: tuple[str, str] | None) -> str:
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
    if "HTTPUnauthorized" in kind or "HTTPForbidden" in kind:
        return "refuses this user and password: give them as rtsp://USER:PASSWORD@HOST/…"
    if "HTTPNotFound" in kind:
        return "no such stream on that camera: look up its path in the manual"
    if code == errno.ECONNREFUSED:
        return "nothing answers at this address: is the camera on, and is the port right?"
    if kind == "ExitError" or code == errno.ETIMEDOUT:
        return f"gave nothing for {TIMEOUT:.0f} s: look at its cable and its network"
    if kind == "InvalidDataError":
        return "gives no video"
    return str(error.strerror or kind).lower()


def _why_lost(error: Any, device: tuple[str, str] | None) -> str:
    """The same of an error after the first frame."""
    if error.errno in (errno.ENODEV, errno.EIO, errno.ENXIO):
        return "was unplugged: look at its cable" if device else "has ended"
    return _why(error, device)


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


def _picamera_shots(name: str) -> Generator[_Shot, None, None]:
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
            yield _Shot(
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
