"""TerminalView on a terminal; test_camera_cli checks its lines in a log and its JSON."""

from __future__ import annotations

import errno
import io
import os
import sys
import time

import pytest

from runtime.camera import camera, terminal_view
from runtime.camera.camera import Frame
from runtime.camera.stream import FramePrediction
from runtime.camera.terminal_view import TerminalView
from runtime.common.errors import CameraError
from runtime.inference.prediction import ClassScore, Prediction
from tests.helpers import PATIENCE
from tests.runtime.camera.helpers import RED, ScriptedBackend, plain


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch, redraw_interval: float = 0.0) -> Terminal:
    """Replaces standard output; in a fixture, pytest's capture would replace it again before the test."""
    fake = Terminal()
    monkeypatch.setattr(sys, "stdout", fake)
    monkeypatch.setattr(os, "get_terminal_size", lambda: os.terminal_size((40, 24)))
    monkeypatch.setattr(terminal_view, "REDRAW_INTERVAL", redraw_interval)
    monkeypatch.setenv("NO_COLOR", "1")
    return fake


def a_prediction(label: str) -> FramePrediction:
    prediction = Prediction("0", label, 0.9, None, (ClassScore(label, 0.9), ClassScore("other", 0.1)), {})
    frame = Frame(plain(RED), time.monotonic(), 1)
    return FramePrediction(frame, prediction, prediction, age_ms=12.3, fps=30.0, dropped=0)


def test_a_terminal_shows_one_line_that_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    view = TerminalView(json=False, on_change=False)
    view.show(a_prediction("roses"), ("roses", "tulips"))
    view.show(a_prediction("tulips"), ("roses", "tulips"))
    view.close()
    first, second = terminal.getvalue().removesuffix("\n").split("\r")[1:]
    assert first.startswith("roses ") and second.startswith("tulips") and "90.0%" in second
    assert all(line.endswith("\x1b[K") and len(line) < 40 + 3 for line in (first, second))


def test_a_message_replaces_the_redrawn_line_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    view = TerminalView(json=False, on_change=False)
    view.show(a_prediction("roses"), ("roses",))
    view.message("0: is back")
    assert terminal.getvalue().endswith("\r\x1b[K0: is back\n")


def test_redraws_are_limited_and_nothing_is_closed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch, redraw_interval=1000.0)
    view = TerminalView(json=False, on_change=False)
    view.close()
    for label in ("roses", "tulips"):
        view.show(a_prediction(label), ("roses", "tulips"))
    view.close()
    view.close()
    assert "tulips" not in terminal.getvalue() and terminal.getvalue().count("\n") == 1


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_camera_comes_back_while_its_messages_cannot_be_written(
    backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as while the disk of the log is full."""
    monkeypatch.setattr(camera, "RETRY_DELAY", 0.001)
    monkeypatch.setattr(sys, "stderr", FullDisk())
    view = TerminalView(json=True, on_change=False)
    view.heading("0, 64 x 48")
    with backend.camera(retry=True, on_message=view.message) as source:
        backend.fail(CameraError("0: was unplugged"))
        backend.put(plain(RED))
        assert source.newest(timeout=PATIENCE) is not None and not source.problem
