"""The page in a real browser: Debian's Chromium, without a window."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from runtime.server.app import PAGE
from tests.helpers import ROOT, wait_for

TOKEN = "a-token-of-the-test"
DESKTOP, PHONE = (1280, 800), (390, 844)

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER) and not os.environ.get("CI"):
    pytest.skip("needs Chromium: apt-get install chromium chromium-driver", allow_module_level=True)


@contextmanager
def browser(size: tuple[int, int]) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = CHROMIUM or "chromium"
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    if size == PHONE:
        metrics = {"width": size[0], "height": size[1], "pixelRatio": 2, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options, Service(DRIVER or "chromedriver"))
    try:
        chrome.set_window_size(*size)
        yield chrome
    finally:
        chrome.quit()


@contextmanager
def serving(*arguments: str | Path, **changes: str) -> Iterator[str]:
    """Gives the page's address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.serve", "--port", "0", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **changes},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        process.stdout.readline()
        yield process.stdout.readline().split()[0]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module", params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def chrome(request: pytest.FixtureRequest) -> Iterator[Chrome]:
    with browser(request.param) as started:
        yield started


@pytest.fixture(scope="module")
def address(knowing: Path) -> Iterator[str]:
    with serving("--model", knowing) as found:
        yield found


def text(chrome: Chrome, selector: str) -> str:
    """Of the first such element; "" where there is none, or none is to be seen."""
    found = chrome.find_elements(By.CSS_SELECTOR, selector)
    return found[0].text if found else ""


def complaints(chrome: Chrome) -> list[str]:
    """What the browser held against the page, its own advice aside."""
    return [
        entry["message"] for entry in chrome.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ]


def hosts_asked(chrome: Chrome) -> set[str | None]:
    messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {urlsplit(url).hostname for url in urls if url.startswith("http")}


def choose(chrome: Chrome, *photos: Path) -> None:
    chrome.find_element(By.ID, "file").send_keys("\n".join(map(str, photos)))


def luminance(colour: str) -> float:
    """Relative luminance, of #rrggbb (WCAG 2)."""
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [
        ("ink", "ground"),
        ("ink", "leaf-soft"),
        ("soft", "ground"),
        ("soft", "panel"),
        ("soft", "leaf-soft"),
        ("soft", "unknown-soft"),
        ("leaf", "ground"),
        ("leaf", "panel"),
        ("on-leaf", "leaf"),
        ("unknown", "panel"),
        ("bad", "panel"),
    ],
)
def test_text_stands_out(text: str, ground: str, scheme: int) -> None:
    """WCAG 2 asks for 4.5 : 1, and rounding is not to decide."""
    rules = re.findall(r":root \{(.*?)\}", (PAGE / "page.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", rules[scheme]))
    dark, light = sorted(luminance(colours[name]) for name in (text, ground))
    assert (light + 0.05) / (dark + 0.05) > 4.7


NEWEST = "#answers li:first-child"


def test_photos_are_named(chrome: Chrome, address: str, photos: Path) -> None:
    chrome.get(address)
    wait_for(lambda: text(chrome, "#name") == "colours")
    assert text(chrome, "#labels").split() == ["blau", "grün", "红"] and text(chrome, "#state") == "ready"
    choose(chrome, photos / "red.jpg")
    wait_for(lambda: text(chrome, f"{NEWEST} .label").split() == ["红", "100.0", "%"])
    assert text(chrome, f"{NEWEST} .bars").split("\n")[:2] == ["红", "100.0 %"]
    assert "red.jpg" in text(chrome, NEWEST) and "ms to infer" in text(chrome, NEWEST)
    choose(chrome, photos / "green.jpg", photos / "blue.png")
    wait_for(lambda: text(chrome, f"{NEWEST} .label").startswith("blau"))
    labels = [found.text.split()[0] for found in chrome.find_elements(By.CSS_SELECTOR, "#answers .label")]
    assert labels == ["blau", "grün", "红"]
    wait_for(lambda: "litert" in text(chrome, "#speed-note") and " ms" in text(chrome, "#speed"))
    assert complaints(chrome) == [] and hosts_asked(chrome) == {"127.0.0.1"}


def test_nothing_is_cut_off(chrome: Chrome, address: str) -> None:
    chrome.get(address)
    wait_for(lambda: text(chrome, "#model") != "")
    width, inner, height, button = chrome.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth, innerHeight, "
        "document.getElementById('choose').getBoundingClientRect().bottom]"
    )
    assert width <= inner and button <= height  # the first thing to do is in sight
    assert chrome.find_element(By.ID, "take").is_displayed() == (inner == PHONE[0])


def test_unknown_and_errors_are_told(chrome: Chrome, address: str, photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), (60, 0, 0)).save(tmp_path / "dark.png")
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    chrome.get(address)
    choose(chrome, tmp_path / "dark.png")
    wait_for(lambda: text(chrome, f"{NEWEST} .label").startswith("unknown"))
    assert "nearest: 红 " in text(chrome, f"{NEWEST} .label")
    choose(chrome, tmp_path / "no.jpg")
    wait_for(lambda: text(chrome, f"{NEWEST} .label") == "No answer")
    assert "no.jpg: is not a picture" in text(chrome, NEWEST)
    choose(chrome, photos / "red.jpg")
    wait_for(lambda: text(chrome, f"{NEWEST} .label").startswith("红"))
    assert [line for line in complaints(chrome) if "415" not in line] == []


def test_a_photo_is_dropped(chrome: Chrome, address: str) -> None:
    chrome.get(address)
    wait_for(lambda: text(chrome, "#name") == "colours")
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


def test_the_token_opens_it(chrome: Chrome, knowing: Path) -> None:
    with serving("--model", knowing, VGG_EDGE_TOKEN=TOKEN) as address:
        chrome.get(address)
        wait_for(lambda: chrome.find_element(By.ID, "login").is_displayed())
        assert text(chrome, "#model") == ""
        field = chrome.find_element(By.ID, "token")
        field.send_keys("a wrong one\n")
        wait_for(lambda: text(chrome, "#login-error") == "That is not the token.")
        field.clear()
        field.send_keys(f"{TOKEN}\n")
        wait_for(lambda: text(chrome, "#name") == "colours")
        chrome.delete_all_cookies()
        chrome.get("about:blank")
        chrome.get(f"{address}/#token={TOKEN}")  # as a terminal prints it
        wait_for(lambda: text(chrome, "#name") == "colours")
        assert TOKEN not in chrome.current_url
        assert chrome.execute_script("return document.cookie") == ""
        assert [line for line in complaints(chrome) if "(Unauthorized)" not in line] == []
        chrome.delete_all_cookies()
        chrome.get(
            "about:blank"
        )  # the page would ask on after the service's end, and the next test hear of it


COUNT_CHANGES = """
    window.changes = { label: 0, said: 0 };
    for (const name in changes) {
      const seen = new MutationObserver((found) => { changes[name] += found.length; });
      seen.observe(document.getElementById(`live-${name}`), { childList: true });
    }
"""


def test_the_camera_is_live(
    chrome: Chrome, knowing: Path, make_clip: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", [("red", 150)])
    with serving("--model", knowing, "--camera", clip) as address:
        chrome.get(address)
        chrome.execute_script(COUNT_CHANGES)
        wait_for(lambda: text(chrome, "#live-label").startswith("红") and text(chrome, "#state") == "live")
        assert chrome.execute_script("return document.getElementById('picture').naturalWidth") == 64
        assert "frames/s" in text(chrome, "#figures")
        wait_for(lambda: "红" in text(chrome, "#history"))
        choose(chrome, photos / "blue.png")
        wait_for(lambda: text(chrome, f"{NEWEST} .label").startswith("blau"))
        assert text(chrome, "#live-label").startswith("红")
        wait_for(lambda: chrome.execute_script("return changes.label") > 3)
        assert chrome.execute_script("return changes.said") <= 1  # a screen reader is told the label alone
        assert not chrome.find_elements(By.CSS_SELECTOR, "#live-label:is([aria-live], [aria-live] *)")
        assert chrome.execute_script("return document.getElementById('live-said').textContent") == "红"
        assert complaints(chrome) == []
        wait_for(lambda: text(chrome, "#state") == "camera away")  # the clip has ended
        assert "has ended" in text(chrome, "#problem")
