"""Cameras as clips, streams and stand-ins of devices: whatever is seen, in its colours, and never stale."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.camera import camera
from runtime.camera import capture_backends as sources
from runtime.camera.camera import Camera, Frame, over_frames, over_seconds, predict_stream
from runtime.classify import main
from runtime.common.errors import CameraError
from runtime.common.urls import hide_password
from runtime.inference import model_reloader as live
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.preprocess import picture
from tests.helpers import ROOT, wait_for

COLOURS = {"红": (255, 0, 0), "grün": (0, 255, 0), "blau": (0, 0, 255)}
Capture = pytest.CaptureFixture[str]


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (48, 64)) -> NDArray[np.uint8]:
    return np.full((*size, 3), colour, np.uint8)


BITS = 10


def numbered(number: int) -> NDArray[np.uint8]:
    """Ten vertical bars: the bits of a number."""
    pixels = np.zeros((48, 16 * BITS, 3), np.uint8)
    for bit in range(BITS):
        pixels[:, 16 * bit : 16 * bit + 16] = 255 * (number >> bit & 1)
    return pixels


def number_of(frame: Frame) -> int:
    middle = frame.pixels[24, 8::16].mean(axis=-1)
    return sum(1 << bit for bit in range(BITS) if middle[bit] > 127)


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


class MjpegServer:
    """A network camera's MJPEG over HTTP, 50 frames a second. `send` gives the next JPEG, None hangs up."""

    def __init__(self, send: Callable[[int], bytes | None], port: int = 0, user: str = "") -> None:
        outer = self
        self.send, self.paths, self.stopped = send, list[str](), threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.paths.append(self.path)
                if user and self.headers.get("Authorization") != f"Basic {b64encode(user.encode()).decode()}":
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                for number in range(10_000):
                    data = None if outer.stopped.is_set() else outer.send(number)
                    if data is None:
                        return
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                    try:
                        self.wfile.write(head.encode() + data + b"\r\n")
                    except OSError:
                        return
                    time.sleep(0.02)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/video"

    def stop(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def serving(send: Callable[[int], bytes | None], user: str = "") -> Iterator[MjpegServer]:
    server = MjpegServer(send, user=user)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def silent_listener() -> Iterator[socket.socket]:
    """Accepts, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def runs(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runtime.classify", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", ["h264", "mjpeg", "mpegts"])
def test_a_clip_is_seen_in_its_colours_and_at_its_pace(
    colours: Path, clips: dict[str, Path], kind: str
) -> None:
    classifier, began = ReloadingClassifier(colours), time.monotonic()
    with Camera(str(clips[kind])) as source:
        seen = list(predict_stream(source, classifier, smooth=over_frames(1)))
    assert list(dict.fromkeys(sight.prediction.label for sight in seen)) == list(COLOURS)
    assert time.monotonic() - began > 29 / 30  # not faster than it was taken
    assert source.ended and seen[0].frame.pixels.shape == (48, 64, 3)
    numbers = [sight.frame.number for sight in seen]
    assert numbers == sorted(set(numbers)) and numbers[-1] <= 30
    assert seen[-1].dropped == numbers[-1] - len(numbers)


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("avi", "mjpeg")])
def test_a_slow_reader_gets_the_newest_frame_and_never_an_older_one(
    write_clip: Callable[..., Path], tmp_path: Path, suffix: str, codec: str
) -> None:
    clip = write_clip(tmp_path / f"numbers.{suffix}", [numbered(n) for n in range(200)], 100, codec)
    last, lags = 0, list[float]()
    with Camera(str(clip)) as source:
        while frame := source.newest(last):
            assert number_of(frame) == frame.number - 1
            lags.append(time.monotonic() - frame.taken)
            last = frame.number
            time.sleep(0.3)  # thirty frames go by
    # Were the first of them kept, or all, each would be as old as the pause, or older and older.
    assert len(lags) <= 8 and sorted(lags)[len(lags) // 2] < 0.15


def test_frames_that_have_lain_are_passed_over(write_clip: Callable[..., Path], tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "numbers.mp4", [numbered(n) for n in range(20)], 10)
    waited = list[float]()
    with Camera(str(clip)) as source:
        frame = source.newest()
        while frame:
            time.sleep(0.15)  # the next one has come by then, a twentieth of a second ago
            asked = time.monotonic()
            frame = source.newest(frame.number, within=0.02)
            if frame and not source.ended:
                waited.append(time.monotonic() - asked)
                assert frame.taken >= asked - 0.02
    assert sorted(waited)[len(waited) // 2] > 0.01


def test_the_age_covers_all_from_the_frames_arrival_to_its_answer(
    write_clip: Callable[..., Path], colours: Path, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "red.mp4", [plain((255, 0, 0))] * 30)
    classifier = ReloadingClassifier(colours)
    run = classifier.now().session

    def slow(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        time.sleep(0.1)
        return run(pixels)

    classifier.now().session = slow  # type: ignore[assignment]
    with Camera(str(clip)) as source:
        for sight in predict_stream(source, classifier):
            now = time.monotonic()
            assert sight.age_ms >= sight.prediction.ms["infer"] >= 100
            assert 0 <= 1000 * (now - sight.frame.taken) - sight.age_ms + 0.1 < 200
            assert sight.fps < 10


def test_a_frame_overtaken_while_it_is_prepared_is_given_up_for_the_next(
    write_clip: Callable[..., Path], colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "red.mp4", [plain((255, 0, 0))] * 40, 10)
    classifier = ReloadingClassifier(colours)
    run, read, prepared, started = classifier.now().session, camera.read_picture, list[float](), list[float]()

    def now_and_then_slow(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        prepared.append(0.08 * (len(prepared) % 2))
        time.sleep(prepared[-1])
        return read(pixels, size)

    def slow(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        started.append(time.monotonic())
        time.sleep(0.15)  # half an interval is over when it ends: what takes 0.08 s then ends in the next
        return run(pixels)

    monkeypatch.setattr(camera, "read_picture", now_and_then_slow)
    classifier.now().session = slow  # type: ignore[assignment]
    with Camera(str(clip)) as source:
        taken = [sight.frame.taken for sight in predict_stream(source, classifier)]
    ages = sorted(start - frame for start, frame in zip(started, taken, strict=True))
    assert len(prepared) > len(ages) and ages[len(ages) * 3 // 4] < 0.1


def test_a_clip_may_stand_still_for_longer_than_a_camera(
    write_clip: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "TIMEOUT", 0.5)
    monkeypatch.setattr(camera, "TIMEOUT", 0.5)
    clip = write_clip(tmp_path / "lapse.avi", [plain((255, 0, 0))] * 2, Fraction(1, 60), "mjpeg")
    with Camera(str(clip)) as source:
        assert source.newest(0, timeout=10) and source.newest(1, timeout=10)
        wait_for(lambda: source.ended)


def test_a_clips_name_is_no_protocol(
    clips: dict[str, Path], colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("12:30:05.mp4").write_bytes(clips["h264"].read_bytes())
    assert main(["--camera", "12:30:05.mp4", "--json", "--model", str(colours)]) == 0


def test_a_picture_that_no_model_can_see_is_the_cameras(
    write_clip: Callable[..., Path], colours: Path, tmp_path: Path, capsys: Capture
) -> None:
    clip = write_clip(tmp_path / "thin.avi", [plain((255, 0, 0), (16, 4096))] * 3, codec="mjpeg")
    assert main(["--camera", str(clip), "--json", "--model", str(colours)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {clip}: its picture is 4096 x 16 pixels: ")


def test_every_paces_the_answers(colours: Path, clips: dict[str, Path]) -> None:
    classifier = ReloadingClassifier(colours)
    with Camera(str(clips["h264"])) as source:
        seen = list(predict_stream(source, classifier, every=0.3, smooth=over_frames(1)))
    starts = [sight.frame.taken for sight in seen]
    assert 3 <= len(seen) <= 5 and min(np.diff(starts)) > 0.1


def test_smoothing_averages_over_frames_or_time() -> None:
    assert over_frames(0)(9) == over_frames(1)(9) == 1
    assert over_frames(3)(9) == 0.5
    assert over_seconds(0)(0.1) == 1
    assert over_seconds(1)(1) == pytest.approx(1 - np.exp(-1))
    assert over_seconds(0.5)(1e-9) == pytest.approx(0, abs=1e-6) and over_seconds(0.5)(60) == pytest.approx(1)


def test_smoothing_lags_behind_a_change(colours: Path, clips: dict[str, Path]) -> None:
    classifier = ReloadingClassifier(colours)
    with Camera(str(clips["h264"])) as source:
        seen = list(predict_stream(source, classifier, smooth=over_seconds(100)))
    assert {sight.prediction.label for sight in seen} == {"红"}
    assert seen[-1].prediction.probability < seen[0].prediction.probability


def test_another_model_starts_another_average(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LOOK_EVERY", 0.01)
    folder = make_folder(tmp_path / "colours")
    classifier, labels = ReloadingClassifier(folder), list[str]()
    red, blue = jpeg(plain((255, 0, 0))), jpeg(plain((0, 0, 255)))
    with serving(lambda number: blue if labels else red) as server, Camera(server.address) as source:
        for sight in predict_stream(source, classifier, smooth=over_seconds(1000)):
            if not labels:
                folder.rename(tmp_path / "colours.old")
                make_folder(folder, labels=("blue", "green", "red"))
            labels.append(sight.prediction.label)
            if labels[-1] in ("blue", "green", "red") or len(labels) > 500:
                break
    assert set(labels[:-1]) == {"红"} and labels[-1] == "blue"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("0", "0"),
        ("/dev/video2", "/dev/video2"),
        ("a?b=c@d.mp4", "a?b=c@d.mp4"),
        ("rtsp://host/stream1", "rtsp://host/stream1"),
        ("rtsp://user:geheim@host:554/stream1", "rtsp://user:***@host:554/stream1"),
        ("rtsp://user:ge/he@im@host/s", "rtsp://user:***@host/s"),
        ("rtsp://geheim@host/s", "rtsp://***@host/s"),
        ("http://host/video?token=geheim&x=geheim", "http://host/video?token=***&x=***"),
        ("http://host/video?geheim", "http://host/video?***"),
        ("rtsp://host/user=geheim_password=geheim_channel=1.sdp?real", "rtsp://host/user=***?***"),
        ("http://u:geheim@host/a?b=geheim@c", "http://u:***@c"),
        ("http://host/v?sig=AAA/geheim==", "http://host/v?sig=***"),
        ("http://host/v?token=a;geheim", "http://host/v?token=***"),
        ("http://host/v?geheim&x=1", "http://host/v?***&x=***"),
        ("admin:geheim@192.168.1.5:554/s", "admin:***@192.168.1.5:554/s"),
        ("rtsp:/admin:geheim@host/s", "rtsp:***@host/s"),
        ("rtsp://admin:geheim", "rtsp://admin:***"),
        ("rtsp://host:554/a:b", "rtsp://host:554/a:b"),
        ("rtsp://[::1]:554/s", "rtsp://[::1]:554/s"),
    ],
)
def test_passwords_are_hidden(source: str, shown: str) -> None:
    assert hide_password(source) == shown


@pytest.mark.parametrize(
    ("scheme", "flags"), [("rtsp", ("--json", "--verbose")), ("http", ()), ("nonsense", ("--retry",))]
)
def test_no_output_holds_a_password(colours: Path, scheme: str, flags: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = runs(
        "--camera", f"{scheme}://user:geheim@127.0.0.1:{port}/x?token=geheim", "--model", colours, *flags
    )
    assert process.stderr is not None
    said = process.stderr.readline()
    if "--retry" in flags:
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == (0 if "--retry" in flags else 2)
    assert f"{scheme}://user:***@127.0.0.1:{port}/x?token=***: " in said + err
    assert "geheim" not in out + said + err and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--camra=rtsp://user:geheim@host/s"],
        ["--camera", "--every", "rtsp://user:geheim@host/s"],
        ["photo.jpg", "--jsn", "user:geheim@host/s"],
    ],
)
def test_a_mistyped_flag_does_not_show_a_password(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    err = capsys.readouterr().err
    assert "user:***@host/s" in err and "geheim" not in err


def test_an_address_of_any_length_is_none_of_a_file() -> None:
    red = jpeg(plain((255, 0, 0)))
    with serving(lambda number: red) as server, Camera(f"{server.address}?token={'x' * 5000}") as source:
        assert source.newest(timeout=20) is not None


def test_an_address_given_as_a_photo_is_not_repeated(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["rtsp://user:geheim@host/x"])
    err = capsys.readouterr().err
    assert "an address goes with --camera" in err and "geheim" not in err


def test_a_stream_gets_its_password() -> None:
    with serving(lambda number: jpeg(plain((255, 0, 0))), user="user:geheim") as server:
        address = server.address.replace("http://", "http://user:geheim@") + "?token=1"
        with Camera(address) as source:
            assert source.newest(timeout=20) is not None
        assert set(server.paths) == {"/video?token=1"}
        wrong = address.replace("geheim", "falsch")
        with Camera(wrong) as source, pytest.raises(CameraError, match="refuses this user") as told:
            source.newest(timeout=20)
        assert "falsch" not in str(told.value)


def test_what_is_wrong_with_a_source_is_told_in_a_line(
    colours: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "notes.mp4").write_text("no video" * 100)
    Image.new("RGB", (8, 8)).save(tmp_path / "sound.wav.png")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    for source, reason in {
        str(tmp_path / "none.mp4"): "no such file or directory",
        str(tmp_path): "is a directory",
        str(tmp_path / "notes.mp4"): "gives no video",
        str(tmp_path / "sound.wav"): "holds no pictures",
        "picamera": "sudo apt install python3-picamera2",
    }.items():
        assert main(["--camera", source, "--model", str(colours)]) == 2
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert line.startswith(f"error: {source}") and reason in line and out == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="V4L2's names")
def test_what_is_wrong_with_a_device_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    device = ("/dev/video0", "v4l2")

    def why(kind: type[Exception], code: int) -> str:
        return sources._why(kind(code, os.strerror(code), device[0]), device, False)

    monkeypatch.setattr(sources, "_video_devices", lambda: ["/dev/video3 (HD Webcam)"])
    assert why(av.error.FileNotFoundError, 2) == "no such camera; there are: /dev/video3 (HD Webcam)"
    assert "in use by another program" in why(av.error.OSError, 16)
    refused = why(av.error.PermissionError, 13)
    assert "group video" in refused and "sudo usermod -aG video $USER" in refused
    monkeypatch.setattr(sources, "_video_devices", list)
    assert why(av.error.OSError, 19) == "no such camera; none is connected: look at its cable"


def test_a_camera_that_goes_away_ends_it_or_is_waited_for(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera, "RETRY_AFTER", 0.05)
    said = list[str]()
    red, blue = jpeg(plain((255, 0, 0))), jpeg(plain((0, 0, 255)))
    with serving(lambda number: red if number < 30 else None) as server, Camera(server.address) as source:
        with pytest.raises(CameraError, match=f"^{server.address}: has ended$"):
            seen = [sight.prediction.label for sight in predict_stream(source, ReloadingClassifier(colours))]
        port = server.port
    seen = []
    classifier = ReloadingClassifier(colours)
    server = MjpegServer(lambda number: red, port)
    with Camera(server.address, retry=True, say=said.append) as source:
        for sight in predict_stream(source, classifier, smooth=over_frames(1)):
            seen.append(sight.prediction.label)
            if len(seen) == 3:
                server.stop()
                while not source.problem:
                    time.sleep(0.01)
                assert source.newest(sight.frame.number, timeout=0.1) is None
                server = MjpegServer(lambda number: blue, port)
            if seen[-1] == "blau":
                break
    server.stop()
    assert seen[:3] == ["红"] * 3 and not source.problem
    assert said[0].startswith(f"{source.name}: ") and said[0].endswith("(trying again until it is back)")
    assert said[-1] == f"{source.name}: is back"
    assert len(said) <= 3  # not a line for every try


def test_a_stream_that_falls_silent_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TIMEOUT", 0.5)
    hung = threading.Event()

    def send(number: int) -> bytes:
        if number == 20:
            hung.wait(20)
        return jpeg(plain((255, 0, 0)))

    with serving(send) as server, Camera(server.address) as source:
        last = 0
        with pytest.raises(CameraError, match="gave nothing for 0 s: look at its cable"):
            while True:
                frame = source.newest(last)
                last = frame.number if frame else last
        hung.set()
    assert last > 0


def test_a_driver_that_hangs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "TIMEOUT", 0.1)
    ended = threading.Event()
    monkeypatch.setattr(camera, "open_source", lambda *_: (ended.wait(20) for _ in range(1)))
    with Camera("0") as source, pytest.raises(CameraError, match=r"^0: has been silent for 0 s"):
        for _ in range(100):
            source.newest(timeout=0.05)
    ended.set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hangs", [False, True], ids=["answering", "hanging in connect"])
def test_it_ends_at_once_when_asked(colours: Path, number: signal.Signals, hangs: bool) -> None:
    with silent_listener() as listener, serving(lambda number: jpeg(plain((255, 0, 0)))) as server:
        address = f"rtsp://127.0.0.1:{listener.getsockname()[1]}/x" if hangs else server.address
        process = runs("--camera", address, "--json", "--model", colours)
        if hangs:
            connection, _ = listener.accept()
            time.sleep(1)  # the model is loaded too
        else:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["label"] == "红"
        asked = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        took = time.monotonic() - asked
        if hangs:
            connection.close()
    assert process.returncode == (0 if number == signal.SIGTERM else 130)
    assert "Traceback" not in err and "error" not in err
    objects(out)  # no half line
    assert took < 1


def test_it_ends_when_asked_in_the_middle_of_a_picture(
    colours: Path, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Where every Exception becomes a PictureError."""
    monkeypatch.setattr(picture, "_pixels", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["--camera", str(clips["h264"]), "--model", str(colours)]) == 0
    assert capsys.readouterr() == ("", "")


def test_json_is_one_object_a_frame(colours: Path, clips: dict[str, Path], capsys: Capture) -> None:
    assert main(["--camera", str(clips["h264"]), "--json", "--smooth", "0", "--model", str(colours)]) == 0
    out, err = capsys.readouterr()
    answers = objects(out)
    assert len(answers) > 10
    fields = [
        "source",
        "label",
        "probability",
        "known",
        "top",
        "ms",
        "frame",
        "age_ms",
        "fps",
        "dropped",
        "time",
    ]
    assert all(list(answer) == fields for answer in answers)
    assert all(answer["age_ms"] >= answer["ms"]["infer"] for answer in answers)
    assert "64 x 48" in err and len(err.splitlines()) == 1


def test_only_changes_are_told(colours: Path, clips: dict[str, Path], capsys: Capture) -> None:
    arguments = ["--camera", str(clips["h264"]), "--smooth", "1", "--model", str(colours)]
    assert main([*arguments, "--json", "--on-change"]) == 0
    assert [answer["label"] for answer in objects(capsys.readouterr().out)] == list(COLOURS)
    assert main(arguments) == 0  # into a file or a pipe
    header, *lines = capsys.readouterr().out.splitlines()
    assert "64 x 48" in header and [line.split()[1] for line in lines] == list(COLOURS)
    assert main([*arguments, "--every", "200ms"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 5


def test_lost_on_the_way_is_another_exit_code_than_never_there(colours: Path, capsys: Capture) -> None:
    red = jpeg(plain((255, 0, 0)))
    with serving(lambda number: red if number < 30 else None) as server:
        assert main(["--camera", server.address, "--json", "--model", str(colours)]) == 1
        out, err = capsys.readouterr()
        assert objects(out)[-1] == {"source": server.address, "error": "has ended"}
        assert err.splitlines()[-1] == f"error: {server.address}: has ended"
    assert main(["--camera", server.address, "--json", "--model", str(colours)]) == 2


def test_frames_are_kept_for_the_next_training(
    colours: Path, clips: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["--camera", str(clips["h264"]), "--json", "--model", str(colours)]
    assert main([*arguments, "--every", "300ms", "--capture", "rot", str(tmp_path)]) == 0
    kept = sorted((tmp_path / "rot").iterdir())
    assert 3 <= len(kept) <= 5 and all(path.suffix == ".jpg" for path in kept)
    first = np.asarray(Image.open(kept[0]))
    assert first.shape == (48, 64, 3) and first[24, 32, 0] > 200 and first[24, 32, 2] < 50
    capsys.readouterr()
    sizes = sum(path.stat().st_size for path in kept)
    limit = (sizes + 1.5 * kept[0].stat().st_size) / 1e6  # what lies there counts
    assert (
        main([*arguments, "--every", "100ms", "--capture", "rot", str(tmp_path), "--max-mb", str(limit)]) == 0
    )
    assert sum(path.stat().st_size for path in (tmp_path / "rot").iterdir()) <= limit * 1e6
    assert len(list((tmp_path / "rot").iterdir())) == len(kept) + 1
    err = capsys.readouterr().err
    assert err.count("holds as much as --max-mb allows: no more frames are kept") == 1


def test_a_model_that_does_not_tell_keeps_nothing_unknown(
    colours: Path, clips: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["--camera", str(clips["h264"]), "--model", str(colours)]
    assert main([*arguments, "--save-unknown", str(tmp_path / "kept")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --save-unknown: ") and line.endswith("does not tell what is unknown")
    assert not (tmp_path / "kept").exists()


def test_only_unknown_frames_are_kept(
    write_clip: Callable[..., Path], knowing: Path, tmp_path: Path, capsys: Capture
) -> None:
    pictures = [plain((255, 0, 0))] * 15 + [plain((30, 0, 0))] * 15
    clip = write_clip(tmp_path / "darkens.mp4", pictures)
    arguments = ["--camera", str(clip), "--smooth", "0", "--every", "50ms", "--model", str(knowing)]
    assert main([*arguments, "--save-unknown", str(tmp_path / "kept")]) == 0
    kept = list((tmp_path / "kept").iterdir())
    assert len(kept) >= 3 and all(np.asarray(Image.open(path)).max() < 60 for path in kept)
    assert "unknown (nearest: 红 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    "label", ["", "..", "../up", "a/b", "a\\b", ".hidden", "-x", "tail.", "a\nb", "x" * 201, "\udcff"]
)
def test_a_class_is_a_plain_name(label: str, colours: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--camera", "none.mp4", "--model", str(colours), f"--capture={label}", str(tmp_path)]
    if label == "-x":  # argparse's own
        with pytest.raises(SystemExit):
            main(arguments)
        return
    arguments[4:] = ["--capture", label, str(tmp_path)]
    assert main(arguments) == 2
    assert "cannot be a class: take a plain name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "channels"), [("RGB888", 3), ("XRGB8888", 4), ("BGR888", 3), ("XBGR8888", 4)]
)
def test_picamera_frames_come_out_in_rgb(
    format: str, channels: int, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that gives what picamera2 documents: arrays in the reverse order of the format's name."""
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
            if self.number > 60:
                raise TimeoutError
            time.sleep(0.01)
            return Request(self.number)

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setitem(
        sys.modules, "picamera2", SimpleNamespace(Picamera2=Picamera2, __spec__=SimpleNamespace())
    )
    with Camera("picamera") as source, pytest.raises(CameraError, match="look at its ribbon cable"):
        for sight in predict_stream(source, ReloadingClassifier(colours)):
            assert sight.prediction.label == "红" and sight.age_ms >= 20
            assert sight.frame.pixels.shape == (48, 64, 3) and tuple(sight.frame.pixels[0, 0]) == (255, 0, 0)
    assert closed == [True]
    assert sorted(released) == list(range(1, 61))


def test_a_phones_upright_clip_is_upright(write_clip: Callable[..., Path], tmp_path: Path) -> None:
    pixels = plain((0, 0, 0))
    pixels[:, :32] = (255, 0, 0)  # the left half, which is the upper one after a quarter turn clockwise
    clip = write_clip(tmp_path / "phone.mp4", [pixels] * 5, 10)
    data = clip.read_bytes()
    at = data.index(b"tkhd") + 44  # the track's matrix (ISO/IEC 14496-12, 8.3.2)
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turn = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    clip.write_bytes(data[:at] + turn + data[at + 36 :])
    with Camera(str(clip)) as source:
        frame = source.newest()
    assert frame is not None and frame.pixels.shape == (64, 48, 3)
    assert frame.pixels[8, 24, 0] > 200 and frame.pixels[56, 24, 0] < 50


def test_without_pyav_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, colours: Path) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(CameraError, match=r"pip install 'vgg-edge\[camera\]'"):
        Camera("0")
