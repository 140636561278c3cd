"""The page's dialog for the region of the camera's frames, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.helpers import wait_for
from tests.runtime.camera.helpers import BLUE, RED, jpeg, mjpeg_server, plain
from tests.runtime.server.browser import browser_errors, text
from tests.serving import Client, serve_in_thread


@pytest.fixture
def service(knowing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A camera that shows a blue corner in a red picture."""
    monkeypatch.setenv("VGG_EDGE_CORRECTIONS", str(tmp_path))
    picture = plain(RED, (480, 640))
    picture[240:, 320:] = BLUE
    data = jpeg(picture)
    with (
        mjpeg_server(lambda number: data) as server,
        serve_in_thread(knowing, camera=server.address, every=0.2) as client,
    ):
        yield client


def saved(service: Client) -> list[float] | None:
    crop: list[float] | None = json.loads(service.request("GET", "/crop")[2])["crop"]
    return crop


def label(chrome: Chrome) -> str:
    """The label of the camera; by script, because the page replaces the element."""
    script = "return document.querySelector('#camera-label span')?.textContent ?? ''"
    return str(chrome.execute_script(script))  # type: ignore[no-untyped-call]


def open_dialog(chrome: Chrome, service: Client) -> None:
    chrome.get(service.url)
    wait_for(lambda: label(chrome) == "红")
    chrome.find_element(By.ID, "crop").click()
    frame = chrome.find_element(By.ID, "crop-frame")
    wait_for(lambda: frame.is_displayed() and frame.get_property("naturalWidth") == 640)


def test_a_region_is_drawn_with_the_mouse_and_removed(chrome: Chrome, service: Client) -> None:
    open_dialog(chrome, service)
    picture = chrome.find_element(By.ID, "crop-picture")
    width, height = picture.size["width"], picture.size["height"]
    drag = ActionChains(chrome).move_to_element_with_offset(picture, round(0.1 * width), round(0.1 * height))
    drag.click_and_hold().move_by_offset(round(0.3 * width), round(0.3 * height)).release().perform()
    chrome.find_element(By.ID, "crop-save").click()
    wait_for(lambda: label(chrome) == "blau")
    assert saved(service) == pytest.approx([0.6, 0.6, 0.3, 0.3], abs=0.02)
    chrome.find_element(By.ID, "crop").click()
    wait_for(lambda: chrome.find_element(By.ID, "crop-left").get_property("value") not in ("", "0.0"))
    chrome.find_element(By.ID, "crop-whole").click()
    wait_for(lambda: label(chrome) == "红")
    assert saved(service) is None and browser_errors(chrome) == []


def test_a_region_is_entered_by_keyboard_alone(chrome: Chrome, service: Client) -> None:
    chrome.get(service.url)
    wait_for(lambda: label(chrome) == "红")
    chrome.execute_script("document.getElementById('crop').focus()")
    press = ActionChains(chrome)
    press.send_keys(Keys.ENTER).perform()
    wait_for(lambda: chrome.switch_to.active_element.get_attribute("id") == "crop-left")
    for value in ("60", "60", "30", "30"):
        ActionChains(chrome).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).send_keys(
            value, Keys.TAB
        ).perform()
    assert chrome.switch_to.active_element.get_attribute("id") == "crop-save"
    ActionChains(chrome).send_keys(Keys.ENTER).perform()
    wait_for(lambda: saved(service) == [0.6, 0.6, 0.3, 0.3])
    wait_for(lambda: label(chrome) == "blau")


def test_an_empty_number_is_not_saved(chrome: Chrome, service: Client) -> None:
    open_dialog(chrome, service)
    chrome.find_element(By.ID, "crop-left").send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE)
    chrome.find_element(By.ID, "crop-save").click()
    wait_for(lambda: text(chrome, "#crop-message") == "Enter four numbers.")
    assert saved(service) is None
    ActionChains(chrome).send_keys(Keys.ESCAPE).perform()


def test_a_region_outside_the_frame_is_reported_in_the_dialog(chrome: Chrome, service: Client) -> None:
    open_dialog(chrome, service)
    chrome.find_element(By.ID, "crop-left").send_keys(Keys.CONTROL, "a", Keys.NULL, "90")
    chrome.find_element(By.ID, "crop-save").click()
    wait_for(lambda: "inside the frame" in text(chrome, "#crop-message"))
    assert saved(service) is None
    ActionChains(chrome).send_keys(Keys.ESCAPE).perform()
    assert not chrome.find_element(By.ID, "crop-dialog").is_displayed()
