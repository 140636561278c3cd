"""The address /crop, and what a region changes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

from runtime.camera.crop import Crop
from tests.helpers import wait_for
from tests.runtime.camera.helpers import BLUE, RED, jpeg, mjpeg_server, plain
from tests.serving import Client, openapi_schema, serve_in_thread

LOWER_RIGHT = [0.5, 0.5, 0.5, 0.5]
NO_CAMERA = "rtsp://127.0.0.1:9/x"


def get_crop(service: Client) -> object:
    answer = json.loads(service.request("GET", "/crop")[2])
    jsonschema.validate(answer, openapi_schema("Crop"))
    return answer["crop"]


def put_crop(service: Client, crop: object) -> int:
    return service.request("PUT", "/crop", json.dumps({"crop": crop}))[0]


def frame_size(service: Client, path: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(service.request("GET", path)[2])).size


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of saved regions."""
    monkeypatch.setenv("VGG_EDGE_CORRECTIONS", str(tmp_path))
    return tmp_path


def test_a_saved_region_is_classified_at_once_and_after_a_restart(knowing: Path, states: Path) -> None:
    picture = plain(RED)
    picture[24:, 32:] = BLUE
    data = jpeg(picture)
    with mjpeg_server(lambda number: data) as server:
        with serve_in_thread(knowing, camera=server.address) as service:
            wait_for(lambda: service.live().get("label") == "红")
            assert get_crop(service) is None and frame_size(service, "/live.jpg") == (64, 48)
            assert put_crop(service, LOWER_RIGHT) == 200
            wait_for(lambda: service.live().get("label") == "blau")
            assert frame_size(service, "/live.jpg") == (32, 24)
            assert frame_size(service, "/live.jpg?whole=1") == (64, 48)
        with serve_in_thread(knowing, camera=server.address) as service:
            assert get_crop(service) == LOWER_RIGHT
            wait_for(lambda: service.live().get("label") == "blau")
            assert put_crop(service, None) == 200 and list(states.iterdir()) == []
            wait_for(lambda: service.live().get("label") == "红")


def test_a_region_of_the_command_line_cannot_be_replaced(knowing: Path, states: Path) -> None:
    with serve_in_thread(knowing, camera=NO_CAMERA, crop=Crop(0.0, 0.0, 0.5, 1.0)) as service:
        assert put_crop(service, LOWER_RIGHT) == 409
        assert get_crop(service) == [0.0, 0.0, 0.5, 1.0] and list(states.iterdir()) == []


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"crop": "x"}', '{"crop": [0, 0, 1]}', "[" * 900])
def test_a_body_without_a_region_is_rejected(knowing: Path, states: Path, body: str) -> None:
    with serve_in_thread(knowing, camera=NO_CAMERA) as service:
        status, _, answer = service.request("PUT", "/crop", body)
        assert status == 400 and "crop" in json.loads(answer)["error"]
        assert service.request("PUT", "/crop", "x" * 1001)[0] == 413


@pytest.mark.parametrize("content", [b"", b"\xff", b'{"crop": [9, 9, 9, 9]}', b"x" * 2000])
def test_a_damaged_file_is_reported_and_the_whole_frame_is_used(
    knowing: Path, states: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file = states / "camera.crop.json"
    file.write_bytes(content)
    with serve_in_thread(knowing, camera=NO_CAMERA) as service:
        assert get_crop(service) is None
        assert f"warning: {file}: " in capsys.readouterr().err
        assert put_crop(service, LOWER_RIGHT) == 200
    assert json.loads(file.read_bytes()) == {"crop": LOWER_RIGHT}


def test_without_a_camera_there_is_no_region(service: Client) -> None:
    assert service.get_status("/crop") == 404 and put_crop(service, None) == 404
