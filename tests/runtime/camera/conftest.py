"""Fixtures of the camera's tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Event

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.camera import camera
from runtime.camera.camera import Camera
from runtime.camera.raw_frame import RawFrame
from tests.runtime.camera.helpers import ScriptedBackend

Pictures = list[NDArray[np.uint8]]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    """Replaces the capture backends: the test sends the frames."""
    scripted = ScriptedBackend()
    monkeypatch.setattr(camera, "open_source", scripted.open)
    return scripted


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pictures], str]:
    """Replaces the capture backends by a clip of the given pictures; gives the clip's name.

    Each picture is classified once, however busy the machine is.
    """
    monkeypatch.setattr(Camera, "frame_interval", 0.0)  # no frame is ever too old to be classified

    def play_pictures(pictures: Pictures) -> str:
        monkeypatch.setattr(camera, "open_source", lambda source, name: _frames(pictures))
        return "clip.mp4"

    return play_pictures


def _frames(pictures: Pictures) -> Iterator[RawFrame]:
    """Sends each picture again and again until it is decoded; they were captured 10 ms apart."""
    started = time.monotonic()
    for number, pixels in enumerate(pictures):
        is_decoded = Event()

        def decode(pixels: NDArray[np.uint8] = pixels, is_decoded: Event = is_decoded) -> NDArray[np.uint8]:
            if is_decoded.is_set():
                raise ValueError("a repeated frame counts as damaged")
            is_decoded.set()
            return pixels

        while not is_decoded.is_set():
            yield RawFrame(started + 0.01 * (number - len(pictures)), decode)
            is_decoded.wait(0.01)
