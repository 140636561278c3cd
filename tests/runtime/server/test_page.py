"""The page in a real browser: Debian's Chromium, headless."""

from __future__ import annotations

import json
import re
from pathlib import Path
from threading import Event

import pytest
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from runtime.server.routes import STATIC
from tests.helpers import wait_for
from tests.runtime.camera.helpers import RED, jpeg, mjpeg_server, plain
from tests.runtime.conftest import MakeFolder
from tests.runtime.scene import save_pictures, scene_pictures
from tests.runtime.server.browser import (
    PHONE,
    accept_alert,
    browser_errors,
    choose,
    focused,
    had_text,
    press,
    record_texts,
    requested_hosts,
    shown,
    text,
)
from tests.serving import Client, serve_in_thread

TOKEN = "a-token-of-the-test"
ADAPTING = {"learned": "none"}  # "None of these" takes the place of "Wrong?"


@pytest.fixture(scope="module")
def address(service: Client) -> str:
    return service.url


def luminance(color: str) -> float:
    """Relative luminance, of #rrggbb (WCAG 2)."""
    shares = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("foreground", "background"),
    [
        ("text", "background"),
        ("text", "accent-tint"),
        ("muted", "background"),
        ("muted", "panel"),
        ("muted", "accent-tint"),
        ("muted", "unknown-tint"),
        ("accent", "background"),
        ("accent", "panel"),
        ("on-accent", "accent"),
        ("unknown", "panel"),
        ("bad", "panel"),
    ],
)
def test_text_has_enough_contrast(foreground: str, background: str, scheme: int) -> None:
    """WCAG 2 requires 4.5 : 1; the margin covers rounding."""
    rules = re.findall(r":root \{(.*?)\}", (STATIC / "page.css").read_text(), re.DOTALL)
    colors = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", rules[scheme]))
    dark, light = sorted(luminance(colors[name]) for name in (foreground, background))
    assert (light + 0.05) / (dark + 0.05) > 4.7


NEWEST = "#results li:first-child"


def test_photos_get_labels_bars_and_times(chrome: Chrome, address: str, photos: Path) -> None:
    chrome.get(address)
    wait_for(lambda: text(chrome, "#model-name") == "colours")
    assert (
        text(chrome, "#labels").split() == ["blau", "grün", "红"] and text(chrome, "#connection") == "ready"
    )
    choose(chrome, photos / "red.jpg")
    wait_for(lambda: text(chrome, f"{NEWEST} .label").split() == ["红", "100.0", "%"])
    assert text(chrome, f"{NEWEST} .bars").split("\n")[:2] == ["红", "100.0 %"]
    assert "red.jpg" in text(chrome, NEWEST) and "inference" in text(chrome, NEWEST)
    choose(chrome, photos / "green.jpg", photos / "blue.png")
    wait_for(lambda: text(chrome, f"{NEWEST} .label").startswith("blau"))
    labels = [found.text.split()[0] for found in chrome.find_elements(By.CSS_SELECTOR, "#results .label")]
    assert labels == ["blau", "grün", "红"]
    wait_for(lambda: "litert" in text(chrome, "#speed-note") and " ms" in text(chrome, "#speed"))
    assert browser_errors(chrome) == [] and requested_hosts(chrome) == {"127.0.0.1"}


def test_the_page_fits_the_window(chrome: Chrome, address: str) -> None:
    chrome.get(address)
    wait_for(lambda: text(chrome, "#model") != "")
    width, inner, height, button = chrome.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth, innerHeight, "
        "document.getElementById('choose-photos').getBoundingClientRect().bottom]"
    )
    assert width <= inner and button <= height  # the main button needs no scrolling
    assert chrome.find_element(By.ID, "take-photo").is_displayed() == (inner == PHONE[0])


def test_unknown_pictures_and_errors_are_shown(
    chrome: Chrome, address: str, photos: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 48), (60, 0, 0)).save(tmp_path / "dark.png")
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    chrome.get(address)
    choose(chrome, tmp_path / "dark.png")
    wait_for(lambda: text(chrome, f"{NEWEST} .label").startswith("unknown"))
    assert "nearest: 红 " in text(chrome, f"{NEWEST} .label")
    choose(chrome, tmp_path / "no.jpg")
    wait_for(lambda: text(chrome, f"{NEWEST} .label") == "Not classified")
    assert "no.jpg: " in text(chrome, NEWEST)
    choose(chrome, photos / "red.jpg")
    wait_for(lambda: text(chrome, f"{NEWEST} .label").startswith("红"))
    assert [line for line in browser_errors(chrome) if "415" not in line] == []


def test_a_dropped_photo_is_classified(chrome: Chrome, address: str) -> None:
    chrome.get(address)
    wait_for(lambda: text(chrome, "#model-name") == "colours")
    chrome.execute_script(
        """
        const canvas = document.createElement("canvas");
        const pen = canvas.getContext("2d");
        pen.fillStyle = "lime";
        pen.fillRect(0, 0, canvas.width, canvas.height);
        canvas.toBlob((blob) => {
          const data = new DataTransfer();
          data.items.add(new File([blob], "dropped.png", { type: "image/png" }));
          document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        });
        """
    )
    wait_for(lambda: text(chrome, f"{NEWEST} .label").startswith("grün"))
    assert "dropped.png" in text(chrome, NEWEST)


def test_the_token_signs_in(chrome: Chrome, knowing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGG_EDGE_TOKEN", TOKEN)
    with serve_in_thread(knowing) as service:
        chrome.get(service.url)
        wait_for(lambda: chrome.find_element(By.ID, "login").is_displayed())
        assert text(chrome, "#model") == ""
        field = chrome.find_element(By.ID, "token")
        field.send_keys("a wrong one\n")
        wait_for(lambda: text(chrome, "#login-error") == "Wrong token.")
        field.clear()
        field.send_keys(f"{TOKEN}\n")
        wait_for(lambda: text(chrome, "#model-name") == "colours")
        chrome.delete_all_cookies()
        chrome.get("about:blank")
        chrome.get(f"{service.url}/#token=wrong")
        wait_for(lambda: text(chrome, "#login-error") == "Wrong token.")
        chrome.get("about:blank")
        chrome.get(f"{service.url}/#token={TOKEN}")  # the link that a terminal prints
        wait_for(lambda: text(chrome, "#model-name") == "colours")
        assert TOKEN not in chrome.current_url
        chrome.get("about:blank")
        chrome.get(f"{service.url}/#token={TOKEN}")  # again, signed in already
        wait_for(lambda: text(chrome, "#model-name") == "colours")
        assert TOKEN not in chrome.current_url
        chrome.delete_all_cookies()
        chrome.get("about:blank")
        chrome.get(service.url)
        wait_for(lambda: chrome.find_element(By.ID, "login").is_displayed())
        chrome.get(f"{service.url}/#token={TOKEN}")  # in the same tab: the page does not load again
        wait_for(lambda: not chrome.find_element(By.ID, "login").is_displayed())
        assert TOKEN not in chrome.current_url
        assert chrome.execute_script("return document.cookie") == ""
        assert [line for line in browser_errors(chrome) if "(Unauthorized)" not in line] == []
        chrome.delete_all_cookies()
        chrome.get("about:blank")  # else the page polls the stopped service during the next test


def marks(chrome: Chrome, within: str) -> list[WebElement]:
    """The visible buttons "None of these"."""
    return shown(chrome, f"{within} .mark")


@pytest.mark.slow
def test_the_answers_change_after_adapting_and_after_a_reset(
    chrome: Chrome, make_scene_model: MakeFolder, tmp_path: Path
) -> None:
    scene = sorted(save_pictures(scene_pictures(12, seed=1), tmp_path / "scene").iterdir())
    with serve_in_thread(make_scene_model(tmp_path / "quarters"), classifier_options=ADAPTING) as service:
        chrome.get(service.url)
        wait_for(lambda: text(chrome, "#model-name") == "quarters")
        assert not chrome.find_element(By.ID, "tray").is_displayed()
        choose(chrome, *scene)
        wait_for(lambda: len(marks(chrome, "#results")) == len(scene))
        named = text(chrome, "#results").count("unknown")
        for button in marks(chrome, "#results"):
            button.send_keys(Keys.ENTER)
        wait_for(lambda: text(chrome, "#tray-count") == "12 photos")
        wait_for(lambda: len(chrome.find_elements(By.CSS_SELECTOR, "#tray-photos img")) == 12)
        assert text(chrome, "#tray-folder") == str(tmp_path / "quarters.none")
        press(chrome, "#adapt")
        wait_for(lambda: "12 photos" in text(chrome, "#tray-message"))
        wait_for(lambda: text(chrome, "#results").count("unknown") > named + 6)
        wait_for(lambda: "12 photos" in text(chrome, "#model"))
        press(chrome, "#reset", Keys.SPACE)
        wait_for(lambda: text(chrome, "#results").count("unknown") == named)
        assert focused(chrome) == "adapt" and "removed" in text(chrome, "#tray-message")
        wait_for(lambda: "12 photos" not in text(chrome, "#model"))
        assert not chrome.find_element(By.ID, "reset").is_displayed()
        assert browser_errors(chrome) == []
        chrome.get("about:blank")


def focused_label(chrome: Chrome) -> str:
    return str(chrome.execute_script("return document.activeElement.getAttribute('aria-label') ?? ''"))


def test_photos_leave_the_tray(chrome: Chrome, make_scene_model: MakeFolder, tmp_path: Path) -> None:
    scene = sorted(save_pictures(scene_pictures(3, seed=1), tmp_path / "scene").iterdir())
    with serve_in_thread(make_scene_model(tmp_path / "quarters"), classifier_options=ADAPTING) as service:
        chrome.get(service.url)
        choose(chrome, *scene)
        wait_for(lambda: len(marks(chrome, "#results")) == 3)
        for button in marks(chrome, "#results"):
            button.click()
        wait_for(lambda: text(chrome, "#tray-count") == "3 photos")
        press(chrome, "#tray-photos li:nth-child(2) button")
        wait_for(lambda: text(chrome, "#tray-count") == "2 photos")
        wait_for(lambda: focused_label(chrome).startswith("Remove the photo"))
        assert service.status()["tray"]["photos"] == 2
        press(chrome, "#empty-tray")
        accept_alert(chrome)
        wait_for(lambda: service.status()["tray"]["photos"] == 0)
        wait_for(lambda: focused(chrome) == "adapt" and text(chrome, "#tray-message") == "The tray is empty.")
        press(chrome, "#adapt")  # does nothing
        assert browser_errors(chrome) == []
        chrome.get("about:blank")


def test_a_refused_adaptation_is_explained(
    chrome: Chrome, make_scene_model: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.inference.adaptation.bias_to_add", lambda *_: -100.0)
    scene = sorted(save_pictures(scene_pictures(12, seed=1), tmp_path / "scene").iterdir())
    with serve_in_thread(make_scene_model(tmp_path / "quarters"), classifier_options=ADAPTING) as service:
        for photo in scene:
            service.request("POST", "/none", photo.read_bytes())
        chrome.get(service.url)
        wait_for(lambda: text(chrome, "#tray-count") == "12 photos")  # also those of another viewer
        press(chrome, "#adapt")
        wait_for(lambda: "would reject" in text(chrome, "#tray-message.error"))
        assert service.status()["correction"] is None
        assert [line for line in browser_errors(chrome) if "409" not in line] == []
        chrome.get("about:blank")


def test_a_model_that_cannot_be_adapted_has_no_buttons(chrome: Chrome, address: str, photos: Path) -> None:
    chrome.get(address)
    choose(chrome, photos / "red.jpg")
    wait_for(lambda: text(chrome, f"{NEWEST} .label").startswith("红"))
    assert marks(chrome, "body") == [] and not chrome.find_element(By.ID, "tray").is_displayed()


def test_a_share_of_photos_to_reject_is_shown(
    chrome: Chrome, make_scene_model: MakeFolder, tmp_path: Path
) -> None:
    model = make_scene_model(tmp_path / "quarters")
    with serve_in_thread(model, classifier_options={"reject": 0.1}) as service:
        chrome.get(service.url)
        wait_for(lambda: "“unknown” for about 10.0 % of the photos" in text(chrome, "#model"))
        assert service.status()["reject"] == 0.1 and browser_errors(chrome) == []
        chrome.get("about:blank")


COUNT_CHANGES = """
    window.changes = { label: 0, announcement: 0 };
    for (const name in changes) {
      const observer = new MutationObserver((mutations) => { changes[name] += mutations.length; });
      observer.observe(document.getElementById(`camera-${name}`), { childList: true });
    }
"""


@pytest.mark.slow
def test_the_camera_shows_live_labels(chrome: Chrome, knowing: Path, photos: Path) -> None:
    red, ends = jpeg(plain(RED)), Event()
    with (
        mjpeg_server(lambda number: None if ends.is_set() else red) as server,
        serve_in_thread(knowing, camera=server.address) as service,
    ):
        chrome.get(service.url)
        chrome.execute_script(COUNT_CHANGES)
        wait_for(
            lambda: text(chrome, "#camera-label").startswith("红") and text(chrome, "#connection") == "live"
        )
        # The label and the frame are separate requests, and either can be first.
        wait_for(
            lambda: chrome.execute_script("return document.getElementById('camera-frame').naturalWidth") == 64
        )
        wait_for(lambda: "frames/s" in text(chrome, "#camera-rate"))
        wait_for(lambda: "红" in text(chrome, "#history-list"))
        choose(chrome, photos / "blue.png")
        wait_for(lambda: text(chrome, f"{NEWEST} .label").startswith("blau"))
        assert text(chrome, "#camera-label").startswith("红")
        wait_for(lambda: chrome.execute_script("return changes.label") > 3)
        assert (
            chrome.execute_script("return changes.announcement") <= 1
        )  # a screen reader announces new labels only
        assert not chrome.find_elements(By.CSS_SELECTOR, "#camera-label:is([aria-live], [aria-live] *)")
        assert (
            chrome.execute_script("return document.getElementById('camera-announcement').textContent") == "红"
        )
        assert browser_errors(chrome) == []
        ends.set()
        wait_for(lambda: text(chrome, "#connection") == "camera offline")
        assert server.address in text(chrome, "#camera-problem")
        chrome.get("about:blank")  # else the page polls the stopped service during the next test


def test_the_live_picture_can_be_marked(chrome: Chrome, make_scene_model: MakeFolder, tmp_path: Path) -> None:
    red, model = jpeg(plain(RED)), make_scene_model(tmp_path / "quarters")
    with (
        mjpeg_server(lambda number: red) as server,
        serve_in_thread(model, camera=server.address, classifier_options=ADAPTING) as service,
    ):
        browser_errors(chrome)  # of earlier tests, whose services stopped
        chrome.get(service.url)
        wait_for(lambda: text(chrome, "#connection") == "live" and len(marks(chrome, "#camera")) == 1)
        wait_for(lambda: text(chrome, "#camera-label") != "")
        (button,) = marks(chrome, "#camera")
        record_texts(chrome, button)
        button.click()
        wait_for(lambda: had_text(chrome, "Added"))
        (photo,) = json.loads(service.request("GET", "/none")[2])["photos"]
        stored = Image.open(tmp_path / "quarters.none" / photo["id"])
        red, green, _ = stored.getpixel((32, 24))  # type: ignore[misc]
        assert stored.size == (64, 48) and red > 200 and green < 60
        wait_for(lambda: button.text == "None of these")
        assert browser_errors(chrome) == []
    wait_for(lambda: text(chrome, "#connection") == "service offline")
    wait_for(lambda: "this picture is old" in text(chrome, "#camera-problem"))
    wait_for(lambda: text(chrome, "#camera-rate") == "")
    chrome.get("about:blank")


def test_a_button_of_the_camera_waits_for_its_first_picture(
    chrome: Chrome, make_scene_model: MakeFolder, tmp_path: Path
) -> None:
    with serve_in_thread(
        make_scene_model(tmp_path / "quarters"), camera="http://127.0.0.1:1/", classifier_options=ADAPTING
    ) as service:
        browser_errors(chrome)
        chrome.get(service.url)
        wait_for(lambda: len(marks(chrome, "#camera")) == 1)
        (button,) = marks(chrome, "#camera")
        button.click()
        assert button.text == "None of these"
        assert [line for line in browser_errors(chrome) if "live.jpg" not in line] == []
        chrome.get("about:blank")
