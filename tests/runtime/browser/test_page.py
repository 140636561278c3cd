"""The page in Chromium: opened as a file and from a static file server, with photos and with a camera."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys

from runtime.browser import page as page_module
from runtime.browser.engine_package import EnginePackage
from runtime.browser.page import make_page
from runtime.model_file.contract import GoldenAnswer
from runtime.model_file.loader import open_model
from tests.helpers import PATIENCE, RELEASED, ROOT, wait_for
from tests.runtime.browser.conftest import StaticServer
from tests.runtime.conftest import MakeFolder
from tests.runtime.server.browser import DESKTOP, PHONE, browser, browser_errors, choose, focused, press, text

pytestmark = pytest.mark.slow

START_SECONDS = 2 * PATIENCE
CAMERA_SIDE = 64
FAKE_CAMERA = ("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream")
NEWEST = "#results > li:first-child"
Write = Callable[[Path, str], str]


@pytest.fixture(scope="module")
def write_page(engine: EnginePackage, static_server: StaticServer) -> Write:
    """Writes the page of a model into the served folder; returns its name."""

    def write(model: Path, name: str) -> str:
        (static_server.folder / name).write_text(make_page(open_model(model, ["onnx"]), engine))
        return name

    return write


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red picture, which Chromium's camera shows again and again."""
    path = tmp_path_factory.mktemp("clip") / "red.y4m"
    planes = [
        bytes([value]) * (CAMERA_SIDE**2 // area) for value, area in ((81, 1), (90, 4), (240, 4))
    ]  # Y, U, V
    head = f"YUV4MPEG2 W{CAMERA_SIDE} H{CAMERA_SIDE} F10:1 Ip A1:1 C420\n".encode()
    path.write_bytes(head + (b"FRAME\n" + b"".join(planes)) * 2)
    return path


@pytest.fixture(scope="module")
def colours_url(write_page: Write, static_server: StaticServer, knowing: Path) -> str:
    """The address of the page of the colours."""
    return f"{static_server.url}/{write_page(knowing, 'colours.html')}"


@contextmanager
def open_browser(size: tuple[int, int], clip: Path) -> Iterator[Chrome]:
    with browser(size, *FAKE_CAMERA, f"use-file-for-fake-video-capture={clip}") as started:
        started.set_script_timeout(PATIENCE)
        yield started


@pytest.fixture(scope="module")
def chrome(clip: Path) -> Iterator[Chrome]:
    with open_browser(DESKTOP, clip) as started:
        yield started


def start(chrome: Chrome, url: str) -> str:
    """Opens the page, and returns its state after its check: "ready" or "stopped"."""
    chrome.get(url)
    wait_for(lambda: text(chrome, "#state") in ("ready", "stopped"), START_SECONDS)
    return text(chrome, "#state")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_classifies_photos_and_the_camera_and_requests_nothing_else(
    size: tuple[int, int],
    clip: Path,
    colours_url: str,
    static_server: StaticServer,
    photos: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    static_server.requested.clear()
    with open_browser(size, clip) as chrome:
        assert start(chrome, colours_url) == "ready"
        choose(chrome, photos / "red.jpg", photos / "blue.png", tmp_path / "no.jpg")
        wait_for(lambda: not chrome.find_elements("css selector", ".pending"))
        labels = [found.text.split() for found in chrome.find_elements("css selector", "#results .label")]
        assert labels == [["Not", "classified"], ["blau", "100.0", "%"], ["红", "100.0", "%"]]
        assert "no.jpg: this browser cannot read it" in text(chrome, NEWEST)
        assert "red.jpg · decoding" in text(chrome, "#results > li:last-child")
        wait_for(lambda: "median of the newest 2" in text(chrome, "#speed-note"))
        assert " ms" in text(chrome, "#speed")
        check_camera(chrome)
        width, inner = chrome.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert width <= inner
        assert static_server.requested == ["/colours.html"] and browser_errors(chrome) == []


def check_camera(chrome: Chrome) -> None:
    """Starts and stops the red camera with the keyboard; the focus stays on the button."""
    press(chrome, "#start-camera", Keys.ENTER)
    wait_for(lambda: text(chrome, "#camera-label").startswith("红"))
    wait_for(lambda: text(chrome, "#state") == "live" and "pictures/s" in text(chrome, "#camera-rate"))
    wait_for(lambda: focused(chrome) == "stop-camera")
    press(chrome, "#stop-camera", Keys.SPACE)
    wait_for(lambda: text(chrome, "#state") == "ready")
    wait_for(lambda: focused(chrome) == "start-camera")
    assert not chrome.find_element("id", "camera").is_displayed()
    press(chrome, "#start-camera", Keys.SPACE)
    wait_for(lambda: text(chrome, "#state") == "live" and text(chrome, "#camera-label").startswith("红"))


def test_it_works_as_a_file_with_the_released_model(
    chrome: Chrome, write_page: Write, tmp_path: Path
) -> None:
    name = write_page(RELEASED, str(tmp_path / "flowers.html"))
    assert start(chrome, f"file://{name}") == "ready"
    assert "passed: probabilities differ by 0.0" in text(chrome, "#model")
    choose(chrome, ROOT / "docs/sunflower.jpg")
    wait_for(lambda: text(chrome, f"{NEWEST} .label").startswith("sunflowers"))
    assert re.search(r"\b99\.\d %", text(chrome, f"{NEWEST} .label"))
    press(chrome, "#start-camera")
    wait_for(lambda: "nearest" in text(chrome, "#camera-label"), START_SECONDS)  # a red picture is no flower
    assert browser_errors(chrome) == []


FETCH = """
const done = arguments[arguments.length - 1];
const code = `fetch("${location.href}").then(() => postMessage("answered"), () => postMessage("refused"))`;
const worker = new Worker(URL.createObjectURL(new Blob([code])));
worker.onmessage = ({ data }) => {
  fetch(location.href).then(() => done([data, "answered"]), () => done([data, "refused"]));
};
"""


def test_neither_the_page_nor_a_worker_can_send_a_request(
    chrome: Chrome, colours_url: str, static_server: StaticServer
) -> None:
    start(chrome, colours_url)
    static_server.requested.clear()
    assert chrome.execute_async_script(FETCH) == ["refused", "refused"]
    assert static_server.requested == []
    browser_errors(chrome)  # the log of the refusals


def test_a_wrong_answer_to_the_test_picture_stops_the_page(
    chrome: Chrome,
    write_page: Write,
    static_server: StaticServer,
    make_scene_model: MakeFolder,
    tmp_path: Path,
) -> None:
    name = write_page(make_scene_model(tmp_path / "right"), "right.html")
    assert start(chrome, f"{static_server.url}/{name}") == "ready"
    wrong = make_scene_model(tmp_path / "wrong", golden=GoldenAnswer((0.0, 0.0, 1.0), 0.5))
    assert start(chrome, f"{static_server.url}/{write_page(wrong, 'wrong.html')}") == "stopped"
    assert "another answer than in the trained model" in text(chrome, "#problem-text")
    assert not chrome.find_element("id", "main").is_displayed()


def test_other_pixels_stop_the_page(
    chrome: Chrome,
    write_page: Write,
    static_server: StaticServer,
    knowing: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = page_module.read_picture
    monkeypatch.setattr(page_module, "read_picture", lambda data, size: np.rot90(read(data, size)))
    assert start(chrome, f"{static_server.url}/{write_page(knowing, 'turned.html')}") == "stopped"
    assert "pixels of the test picture differ" in text(chrome, "#problem-text")


def test_a_label_cannot_end_the_data_block(
    chrome: Chrome, write_page: Write, static_server: StaticServer, make_folder: MakeFolder, tmp_path: Path
) -> None:
    labels = ("</script><script>document.title='x'</script>", "<!--<script>", "&amp;")
    folder = make_folder(tmp_path / "hostile", ("onnx", "float32"), labels=labels)
    assert start(chrome, f"{static_server.url}/{write_page(folder, 'hostile.html')}") == "ready"
    assert [found.text for found in chrome.find_elements("css selector", "#labels li")] == list(labels)
