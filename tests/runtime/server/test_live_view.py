"""The camera behind /live.jpg."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Event

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.camera.camera import Frame
from runtime.camera.stream import FramePrediction
from runtime.common.errors import EngineError
from runtime.inference.classifier import Classifier
from runtime.inference.prediction import ModelOutput, Prediction
from runtime.server import live_view
from runtime.server.errors import RequestRejected
from runtime.server.live_view import MAX_VIEWERS, LiveView
from tests.helpers import PATIENCE, wait_for
from tests.runtime.camera.helpers import BLUE, RED, jpeg, mjpeg_server, plain
from tests.serving import openapi_schema, serve_in_thread

UNREACHABLE = "rtsp://me:hunter2@127.0.0.1:9/x"


def test_the_newest_frame_comes_with_its_prediction(knowing: Path) -> None:
    red, blue, is_blue = jpeg(plain(RED)), jpeg(plain(BLUE)), Event()
    with (
        mjpeg_server(lambda number: blue if is_blue.is_set() else red) as server,
        serve_in_thread(knowing, camera=server.address) as service,
    ):
        slow = socket.create_connection(("127.0.0.1", service.port))  # never reads, and delays nobody
        slow.sendall(b"GET /live.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        labels, frame = [], 0
        while "blau" not in labels:
            status, headers, body = service.request("GET", f"/live.jpg?after={frame}")
            if status == 204:  # no frame yet
                continue
            assert status == 200
            prediction = json.loads(headers["prediction"])
            jsonschema.validate(prediction, openapi_schema("FramePrediction"))
            assert prediction["frame"] > frame
            frame = prediction["frame"]
            labels.append(prediction["label"])
            is_blue.set()
            color = Image.open(io.BytesIO(body)).resize((1, 1)).getpixel((0, 0))
            assert isinstance(color, tuple) and (color[0] > 200) != (color[2] > 200)
        assert set(labels) == {"红", "blau"} and labels[0] == "红"
        # A new answer counts after the frames of --confirm.
        wait_for(lambda: [entry["label"] for entry in service.status()["history"]] == ["红", "blau"])
        wait_for(lambda: service.metric("camera_up") == 1)
        slow.close()


def test_a_service_whose_clip_has_ended_is_healthy(
    knowing: Path, make_clip: Callable[..., Path], tmp_path: Path
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", [("red", 5)])
    with serve_in_thread(knowing, camera=str(clip)) as service:
        wait_for(lambda: "ended" in service.status()["camera"]["problem"])
        assert service.get_status("/healthz") == 200


def test_photos_are_classified_while_the_camera_is_unavailable(
    knowing: Path, red_jpeg: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_in_thread(knowing, camera=UNREACHABLE) as service:
        wait_for(lambda: service.status()["camera"]["problem"] != "")
        problem = service.status()["camera"]["problem"]
        assert "127.0.0.1:9" in problem
        assert "hunter2" not in json.dumps(service.status())
        assert service.metric("camera_up") == 0
        assert service.classify(red_jpeg)[0] == 200 and service.get_status("/healthz") == 200
    printed = capsys.readouterr()
    assert "127.0.0.1" in printed.err and "hunter2" not in printed.out + printed.err


def test_a_strip_among_the_frames_does_not_end_the_camera(knowing: Path) -> None:
    strip, red = jpeg(plain(RED, (10, 2000))), jpeg(plain(RED))
    with (
        mjpeg_server(lambda number: strip if number == 3 else red) as server,
        serve_in_thread(knowing, camera=server.address) as service,
    ):
        wait_for(lambda: (service.status()["camera"]["width"] or 0) == 64)
        wait_for(lambda: service.live().get("frame", 0) > 20)
        wait_for(lambda: service.status()["camera"]["problem"] == "")
        assert service.get_status("/healthz") == 200


@pytest.mark.parametrize("after", ["x", "-1", "9" * 19])
def test_a_malformed_frame_number_is_rejected(knowing: Path, after: str) -> None:
    with serve_in_thread(knowing, camera=UNREACHABLE) as service:
        assert service.get_status(f"/live.jpg?after={after}") == 400


@pytest.mark.parametrize(
    ("error", "problem"),
    [(EngineError("out of memory"), "out of memory"), (MemoryError(), "not enough memory for a frame")],
)
def test_the_camera_continues_after_an_error(
    error: Exception, problem: str, knowing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, infer = Event(), Classifier.infer

    def fail_at_first(self: Classifier, pixels: NDArray[np.uint8]) -> ModelOutput:
        if not works.is_set():
            raise error
        return infer(self, pixels)

    monkeypatch.setattr(Classifier, "infer", fail_at_first)
    red = jpeg(plain(RED))
    with (
        mjpeg_server(lambda number: red) as server,
        serve_in_thread(knowing, camera=server.address) as service,
    ):
        wait_for(lambda: service.status()["camera"]["problem"] == problem)
        works.set()
        wait_for(
            lambda: service.status()["camera"]["problem"] == "" and service.get_status("/live.jpg") == 200
        )


def frame_prediction(
    label: str, probability: float, *, is_change: bool = False, number: int = 1
) -> FramePrediction:
    prediction = Prediction("0", label, probability, True, (), {})
    frame = Frame(plain(RED), time.monotonic(), number, 0.0)
    return FramePrediction(frame, prediction, prediction, 0.0, 0.0, 0, is_change)


def test_an_entry_of_the_history_keeps_its_highest_probability() -> None:
    view = LiveView.__new__(LiveView)  # without a camera
    view.history, view._waiters = deque(), {}
    for label, probability, is_change in (
        ("roses", 0.6, True),
        ("roses", 0.9, False),
        ("roses", 0.7, False),
        ("tulips", 0.95, False),  # not confirmed by a second frame
        ("tulips", 0.8, True),
        ("roses", 0.99, False),
    ):
        view._publish(frame_prediction(label, probability, is_change=is_change))
    entries = [(entry["label"], entry["probability"]) for entry in view.history]
    assert entries == [("roses", 0.9), ("tulips", 0.8)]


def test_a_frame_is_encoded_once_for_all_viewers(monkeypatch: pytest.MonkeyPatch) -> None:
    may_encode, encoded = Event(), list[int]()

    def encode(pixels: NDArray[np.uint8]) -> bytes:
        assert may_encode.wait(PATIENCE)
        encoded.append(len(encoded))
        return b"%d" % len(encoded)

    async def view_frames() -> None:
        view = LiveView.__new__(LiveView)  # without a camera
        view._encoded, view._loop = {}, asyncio.get_running_loop()
        shown = frame_prediction("roses", 0.9)
        gone, *viewers = [asyncio.create_task(view.jpeg(shown)) for _ in range(3)]
        await asyncio.sleep(0)
        gone.cancel()  # a viewer that leaves takes the picture from no other
        await asyncio.sleep(0)
        may_encode.set()
        assert await asyncio.gather(*viewers, view.jpeg(shown)) == [b"1"] * 3
        assert await view.jpeg(shown, whole=True) == b"2"
        assert await view.jpeg(frame_prediction("roses", 0.9, number=2)) == b"3"

    monkeypatch.setattr(live_view, "encode_preview", encode)
    asyncio.run(view_frames())


def test_a_request_that_got_no_frame_in_time_leaves_its_place() -> None:
    async def wait_in_turn() -> None:
        view = LiveView.__new__(LiveView)  # without a camera: no frame arrives
        view.latest, view._waiters, view._loop = None, {}, asyncio.get_running_loop()
        for _ in range(MAX_VIEWERS + 1):
            assert await view.newer_than(0, 0.001, "192.0.2.1") is None

    asyncio.run(wait_in_turn())


def test_a_client_with_many_requests_leaves_frames_to_others() -> None:
    async def compete() -> None:
        view = LiveView.__new__(LiveView)  # without a camera: no frame arrives
        view.latest, view._waiters, view._loop = None, {}, asyncio.get_running_loop()
        crowd = [asyncio.create_task(view.newer_than(0, 10, "192.0.2.1")) for _ in range(MAX_VIEWERS)]
        await asyncio.sleep(0)
        others = [asyncio.create_task(view.newer_than(0, 0.1, "192.0.2.2")) for _ in range(2)]
        assert await asyncio.gather(*others) == [None, None]
        dropped = [task for task in crowd if task.done()]
        assert dropped == crowd[:2]
        for task in dropped:
            with pytest.raises(RequestRejected, match="viewers wait"):
                task.result()
        crowd += [asyncio.create_task(view.newer_than(0, 10, "192.0.2.1")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(RequestRejected, match="viewers wait"):
            crowd.pop().result()
        for task in crowd:
            task.cancel()

    asyncio.run(compete())
