"""`python -m runtime.classify --camera`: what it prints and saves, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.camera import camera
from runtime.camera.flags import DEFAULT_CONFIRM
from runtime.camera.stream import FramePrediction
from runtime.camera.terminal_view import TerminalView
from runtime.classify import main
from runtime.preprocess import picture
from tests.helpers import PATIENCE, start_python, wait_for
from tests.runtime.camera.conftest import Pictures
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


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def clip(write_clip: Callable[..., Path], tmp_path: Path) -> str:
    """Red, green and blue for 0.4 seconds each."""
    pictures = [plain(color) for color in (RED, GREEN, BLUE) for _ in range(12)]
    return str(write_clip(tmp_path / "colors.mp4", pictures))


def test_json_prints_one_object_per_frame(
    colours: Path, play: Callable[[Pictures], str], capsys: Capture
) -> None:
    clip = play([plain(color) for color in (RED, GREEN, BLUE) for _ in range(4)])
    assert main(["--camera", clip, "--json", "--smooth", "0", "--model", str(colours)]) == 0
    out, err = capsys.readouterr()
    answers = objects(out)
    assert len(answers) == 12 and all(list(answer) == FIELDS for answer in answers)
    assert all(answer["age_ms"] >= answer["ms"]["infer"] for answer in answers)
    assert list(dict.fromkeys(answer["label"] for answer in answers)) == LABELS
    assert "64 x 48" in err and len(err.splitlines()) == 1


def test_on_change_and_a_log_print_only_changes(
    colours: Path, play: Callable[[Pictures], str], capsys: Capture
) -> None:
    blurred = [plain((90, 80, 0))]
    clip = play([plain(RED)] * 5 + blurred + [plain(GREEN)] * 5 + [plain(BLUE)] * 5)
    arguments = ["--camera", clip, "--smooth", "1", "--model", str(colours)]
    assert main([*arguments, "--json", "--on-change"]) == 0
    assert [answer["label"] for answer in objects(capsys.readouterr().out)] == LABELS
    assert main(arguments) == 0  # standard output is no terminal here
    heading, *lines = capsys.readouterr().out.splitlines()
    assert "64 x 48" in heading and [line.split()[1] for line in lines] == LABELS


def test_with_every_a_log_prints_each_answer(
    colours: Path, play: Callable[[Pictures], str], capsys: Capture
) -> None:
    assert main(["--camera", play([plain(RED)] * 4), "--every", "1ms", "--model", str(colours)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 4


def test_a_camera_lost_on_the_way_exits_1_and_one_that_never_opened_2(
    colours: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    red, is_shown, show = jpeg(plain(RED)), threading.Event(), TerminalView.show

    def record(view: TerminalView, shown: FramePrediction, model_labels: tuple[str, ...]) -> None:
        show(view, shown, model_labels)
        is_shown.set()

    monkeypatch.setattr(TerminalView, "show", record)
    with mjpeg_server(lambda number: None if is_shown.is_set() else red) as server:
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
    labels, show = list[str](), TerminalView.show
    red, blue = jpeg(plain(RED)), jpeg(plain(BLUE))
    servers = [MjpegServer(lambda number: red)]
    address = servers[0].address

    def record(view: TerminalView, shown: FramePrediction, model_labels: tuple[str, ...]) -> None:
        show(view, shown, model_labels)
        labels.append(shown.prediction.label)

    def restart() -> None:
        wait_for(lambda: labels.count("红") >= DEFAULT_CONFIRM)
        servers[0].stop()
        servers.append(MjpegServer(lambda number: blue, servers[0].port))
        wait_for(lambda: labels.count("blau") >= DEFAULT_CONFIRM)
        terminate()

    monkeypatch.setattr(TerminalView, "show", record)
    threading.Thread(target=restart).start()
    arguments = ["--camera", address, "--retry", "--json", "--on-change", "--smooth", "0"]
    assert main([*arguments, "--model", str(colours)]) == 0
    servers[1].stop()
    out, err = capsys.readouterr()
    assert [answer["label"] for answer in objects(out)] == ["红", "blau"]
    assert err.splitlines()[-1] == f"{address}: is back"


@pytest.mark.parametrize(
    ("scheme", "flags"), [("rtsp", ["--json", "--verbose"]), ("http", []), ("nonsense", ["--retry"])]
)
def test_no_output_contains_a_password(
    scheme: str, flags: list[str], colours: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    message = TerminalView.message

    def message_and_terminate(view: TerminalView, line: str) -> None:
        message(view, line)
        if scheme in line:
            terminate()

    monkeypatch.setattr(TerminalView, "message", message_and_terminate)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"{scheme}://user:geheim@127.0.0.1:{port}/x?token=geheim"
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_in_a_second_and_prints_what_was_saved(
    number: signal.Signals, code: int, colours: Path, tmp_path: Path
) -> None:
    red = jpeg(plain(RED))
    with mjpeg_server(lambda number: red) as server:
        arguments = ("--camera", server.address, "--json", "--model", colours, "--capture", "rot", tmp_path)
        started = time.monotonic()
        process = start_python("-m", "runtime.classify", *arguments)
        assert process.stdout is not None
        for _ in range(2):
            assert json.loads(process.stdout.readline())["label"] == "红"
        out, err = end(process, number, time.monotonic() - started)
    assert process.returncode == code and "Traceback" not in err and "error" not in err
    objects(out)  # no line is cut
    assert re.match(r"saved \d+ photos? in ", err.splitlines()[-1])


def test_a_signal_ends_a_command_that_hangs_in_connect(colours: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        started = time.monotonic()
        address = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        process = start_python("-m", "runtime.classify", "--camera", address, "--json", "--model", colours)
        connection, _ = silent.accept()
        start = time.monotonic() - started
        assert end(process, signal.SIGINT, start) == ("", "") and process.returncode == 130
        connection.close()


def end(process: subprocess.Popen[str], number: signal.Signals, start: float) -> tuple[str, str]:
    """Sends a signal; returns what the process prints before it ends.

    That takes less than a second, or than the start of the process, `start` seconds: one on an idle machine.
    """
    sent = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert time.monotonic() - sent < max(1.0, start)
    return out, err


def test_sigterm_ends_the_command_while_a_picture_is_decoded(
    colours: Path, clip: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The decoder turns every Exception into a PictureError."""
    monkeypatch.setattr(picture, "_read_picture", lambda *_: terminate())
    assert main(["--camera", clip, "--model", str(colours)]) == 0
    assert capsys.readouterr() == ("", "")


def test_capture_saves_photos_and_ends_with_their_number_and_folder(
    colours: Path, play: Callable[[Pictures], str], tmp_path: Path, capsys: Capture
) -> None:
    folder, clip = tmp_path / "photos", play([plain(RED)] * 4)
    arguments = ["--camera", clip, "--json", "--model", str(colours), "--every", "1ms"]
    assert main([*arguments, "--capture", "rot", str(folder)]) == 0
    assert len(list((folder / "rot").iterdir())) == 4
    assert capsys.readouterr().err.splitlines()[-1] == f"saved 4 photos in {folder / 'rot'}"
    assert main([*arguments, "--capture", "red", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "rot" in line and "--new-class" in line and not (folder / "red").exists()
    assert main([*arguments, "--capture", "red", str(folder), "--new-class"]) == 0
    assert len(list((folder / "red").iterdir())) == 4


def test_without_every_one_photo_per_second_is_saved(
    colours: Path, play: Callable[[Pictures], str], tmp_path: Path
) -> None:
    clip = play([plain(RED)] * 4)
    assert main(["--camera", clip, "--model", str(colours), "--capture", "rot", str(tmp_path)]) == 0
    assert len(list((tmp_path / "rot").iterdir())) == 1


def test_save_unknown_saves_only_unknown_frames(
    play: Callable[[Pictures], str], knowing: Path, tmp_path: Path, capsys: Capture
) -> None:
    clip = play([plain(RED)] * 4 + [plain((30, 0, 0))] * 3)
    arguments = ["--camera", clip, "--smooth", "0", "--every", "1ms", "--model", str(knowing)]
    assert main([*arguments, "--save-unknown", str(tmp_path / "unknown")]) == 0
    saved = list((tmp_path / "unknown").iterdir())
    assert len(saved) == 3 and all(np.asarray(Image.open(path)).max() < 60 for path in saved)
    out, err = capsys.readouterr()
    assert "unknown (nearest: 红 0." in out and f"saved 3 photos in {tmp_path / 'unknown'}" in err


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


@pytest.mark.parametrize("flag", [["--retry"], ["--on-change"], ["--crop", "0,0,1,1"]])
def test_a_camera_flag_without_camera_is_a_usage_error(flag: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["photo.jpg", *flag])
    err = capsys.readouterr().err
    assert flag[0] in err.splitlines()[-1] and "--camera" in err.splitlines()[-1]
