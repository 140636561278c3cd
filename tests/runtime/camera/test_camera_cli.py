"""`python -m runtime.classify --camera`: what it prints and saves, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.camera import camera
from runtime.classify import main
from runtime.preprocess import picture
from tests.helpers import ROOT
from tests.runtime.camera.helpers import (
    BLUE,
    GREEN,
    RED,
    MjpegServer,
    jpeg,
    mjpeg_server,
    plain,
)

LABELS = ["红", "grün", "blau"]  # of red, green and blue pictures
FIELDS = ["source", "label", "probability", "known", "top", "ms", "frame", "age_ms", "fps", "dropped", "time"]
Capture = pytest.CaptureFixture[str]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runtime.classify", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def terminate_soon(seconds: float = 1.0) -> None:
    threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGTERM]).start()


@pytest.fixture
def clip(write_clip: Callable[..., Path], tmp_path: Path) -> str:
    """Red, green and blue for 0.4 seconds each."""
    pictures = [plain(color) for color in (RED, GREEN, BLUE) for _ in range(12)]
    return str(write_clip(tmp_path / "colors.mp4", pictures))


def test_json_prints_one_object_per_frame(colours: Path, clip: str, capsys: Capture) -> None:
    assert main(["--camera", clip, "--json", "--smooth", "0", "--model", str(colours)]) == 0
    out, err = capsys.readouterr()
    answers = objects(out)
    assert len(answers) > 10 and all(list(answer) == FIELDS for answer in answers)
    assert all(answer["age_ms"] >= answer["ms"]["infer"] for answer in answers)
    assert list(dict.fromkeys(answer["label"] for answer in answers)) == LABELS
    assert "64 x 48" in err and len(err.splitlines()) == 1


def test_on_change_and_a_log_print_only_changes(
    colours: Path, write_clip: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    pictures = [plain(color) for color in (RED, GREEN, BLUE) for _ in range(20)]
    clip = str(write_clip(tmp_path / "slow.mp4", pictures))
    arguments = ["--camera", clip, "--smooth", "1", "--model", str(colours)]
    assert main([*arguments, "--json", "--on-change"]) == 0
    assert [answer["label"] for answer in objects(capsys.readouterr().out)] == LABELS
    assert main(arguments) == 0  # standard output is no terminal here
    heading, *lines = capsys.readouterr().out.splitlines()
    assert "64 x 48" in heading and [line.split()[1] for line in lines] == LABELS


def test_with_every_a_log_prints_each_answer(colours: Path, clip: str, capsys: Capture) -> None:
    assert main(["--camera", clip, "--every", "200ms", "--model", str(colours)]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 5


def test_a_camera_lost_on_the_way_exits_1_and_one_that_never_opened_2(colours: Path, capsys: Capture) -> None:
    red = jpeg(plain(RED))
    with mjpeg_server(lambda number: red if number < 20 else None) as server:
        arguments = ["--camera", server.address, "--json", "--model", str(colours)]
        assert main(arguments) == 1
        out, err = capsys.readouterr()
        assert objects(out)[-1]["source"] == server.address and "ended" in objects(out)[-1]["error"]
        assert err.splitlines()[-1].startswith(f"error: {server.address}: the stream ended")
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {server.address}: ") and len(err.splitlines()) == 1


def test_with_retry_a_stream_that_went_away_is_connected_again(
    colours: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(camera, "RETRY_DELAY", 0.05)
    red, blue = jpeg(plain(RED)), jpeg(plain(BLUE))
    first = MjpegServer(lambda number: red if number < 20 else None)
    second = list[MjpegServer]()

    def replace() -> None:
        first.stop()
        second.append(MjpegServer(lambda number: blue, first.port))
        terminate_soon()

    threading.Timer(1.0, replace).start()
    arguments = ["--camera", first.address, "--retry", "--json", "--on-change", "--model", str(colours)]
    assert main(arguments) == 0
    second[0].stop()
    out, err = capsys.readouterr()
    assert [answer["label"] for answer in objects(out)] == ["红", "blau"]
    assert err.splitlines()[-1] == f"{first.address}: is back"


@pytest.mark.parametrize(
    ("scheme", "flags"), [("rtsp", ["--json", "--verbose"]), ("http", []), ("nonsense", ["--retry"])]
)
def test_no_output_contains_a_password(colours: Path, scheme: str, flags: list[str], capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"{scheme}://user:geheim@127.0.0.1:{port}/x?token=geheim"
    if "--retry" in flags:
        terminate_soon()
    assert main(["--camera", address, "--model", str(colours), *flags]) == (0 if "--retry" in flags else 2)
    out, err = capsys.readouterr()
    assert f"{scheme}://user:***@127.0.0.1:{port}/x?token=***: " in err
    assert "geheim" not in out + err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--camra=rtsp://user:geheim@host/s"],
        ["--camera", "--every", "rtsp://user:geheim@host/s"],
        ["photo.jpg", "--jsn", "user:geheim@host/s"],
        ["rtsp://user:geheim@host/x"],
    ],
)
def test_a_usage_error_does_not_repeat_a_password(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    err = capsys.readouterr().err
    assert "geheim" not in err and "--camera" in err


def test_a_picture_that_no_model_takes_is_an_error_of_the_camera(
    write_clip: Callable[..., Path], colours: Path, tmp_path: Path, capsys: Capture
) -> None:
    clip = write_clip(tmp_path / "thin.avi", [plain(RED, (16, 4096))] * 3, codec="mjpeg")
    assert main(["--camera", str(clip), "--json", "--model", str(colours)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {clip}: ") and "4096 x 16" in line


@pytest.mark.parametrize(("number", "hangs"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_ends_the_command_within_a_second(
    colours: Path, number: signal.Signals, hangs: bool
) -> None:
    red = jpeg(plain(RED))
    with socket.create_server(("127.0.0.1", 0)) as silent, mjpeg_server(lambda number: red) as server:
        address = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x" if hangs else server.address
        process = start("--camera", address, "--json", "--model", colours)
        if hangs:  # in connect()
            connection, _ = silent.accept()
        else:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["label"] == "红"
        sent = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        took = time.monotonic() - sent
        if hangs:
            connection.close()
    assert process.returncode == (0 if number == signal.SIGTERM else 130)
    assert "Traceback" not in err and "error" not in err
    objects(out)  # no line is cut
    assert took < 1


def test_sigterm_ends_the_command_while_a_picture_is_decoded(
    colours: Path, clip: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The decoder turns every Exception into a PictureError."""
    monkeypatch.setattr(picture, "_read_picture", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["--camera", clip, "--model", str(colours)]) == 0
    assert capsys.readouterr() == ("", "")


def test_capture_saves_photos_and_ends_with_their_number_and_folder(
    colours: Path, clip: str, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "photos"
    arguments = ["--camera", clip, "--json", "--model", str(colours), "--every", "300ms"]
    assert main([*arguments, "--capture", "rot", str(folder)]) == 0
    saved = list((folder / "rot").iterdir())
    assert 3 <= len(saved) <= 6
    assert capsys.readouterr().err.splitlines()[-1] == f"saved {len(saved)} photos in {folder / 'rot'}"
    assert main([*arguments, "--capture", "red", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "rot" in line and "--new-class" in line and not (folder / "red").exists()
    assert main([*arguments, "--capture", "red", str(folder), "--new-class"]) == 0


def test_save_unknown_saves_only_unknown_frames(
    write_clip: Callable[..., Path], knowing: Path, tmp_path: Path, capsys: Capture
) -> None:
    clip = write_clip(tmp_path / "darkens.mp4", [plain(RED)] * 15 + [plain((30, 0, 0))] * 15)
    arguments = ["--camera", str(clip), "--smooth", "0", "--every", "50ms", "--model", str(knowing)]
    assert main([*arguments, "--save-unknown", str(tmp_path / "unknown")]) == 0
    saved = list((tmp_path / "unknown").iterdir())
    assert len(saved) >= 3 and all(np.asarray(Image.open(path)).max() < 60 for path in saved)
    out, err = capsys.readouterr()
    assert "unknown (nearest: 红 0." in out and f"saved {len(saved)} photos in {tmp_path / 'unknown'}" in err


def test_save_unknown_needs_a_model_that_detects_unknown_pictures(
    colours: Path, clip: str, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["--camera", clip, "--model", str(colours)]
    assert main([*arguments, "--save-unknown", str(tmp_path / "unknown")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --save-unknown: ") and str(colours) in line
    assert not (tmp_path / "unknown").exists()


def test_a_camera_that_does_not_open_leaves_no_class_folder(
    colours: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["--camera", str(tmp_path / "none.mp4"), "--capture", "rot", str(tmp_path / "photos")]
    assert main([*arguments, "--model", str(colours)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", [["--retry"], ["--on-change"], ["--capture", "a", "b"], ["--new-class"]])
def test_a_camera_flag_without_camera_is_a_usage_error(flag: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["photo.jpg", *flag])
    err = capsys.readouterr().err
    assert flag[0] in err.splitlines()[-1] and "--camera" in err.splitlines()[-1]
