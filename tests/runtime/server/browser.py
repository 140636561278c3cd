"""Debian's Chromium, headless, for the tests of the page."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import NoAlertPresentException, StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.helpers import wait_for

DESKTOP, PHONE = (1280, 800), (390, 844)

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER) and not os.environ.get("CI"):
    pytest.skip("needs Chromium: apt-get install chromium chromium-driver", allow_module_level=True)


@contextmanager
def browser(size: tuple[int, int], *flags: str) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = CHROMIUM or "chromium"
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", *flags):
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


def text(chrome: Chrome, selector: str) -> str:
    """The visible text of the first matching element; "" if there is none."""
    for found in chrome.find_elements(By.CSS_SELECTOR, selector):
        with suppress(StaleElementReferenceException):  # the page has just replaced it
            return found.text
    return ""


def shown(chrome: Chrome, selector: str) -> list[WebElement]:
    """The visible elements that match."""
    visible = []
    for found in chrome.find_elements(By.CSS_SELECTOR, selector):
        with suppress(StaleElementReferenceException):
            if found.is_displayed():
                visible.append(found)
    return visible


def browser_errors(chrome: Chrome) -> list[str]:
    """The browser's errors and warnings about the page."""
    return [
        entry["message"] for entry in chrome.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ]


def requested_hosts(chrome: Chrome) -> set[str | None]:
    messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {urlsplit(url).hostname for url in urls if url.startswith("http")}


def choose(chrome: Chrome, *photos: Path) -> None:
    chrome.find_element(By.ID, "photo-files").send_keys("\n".join(map(str, photos)))


def press(chrome: Chrome, selector: str, key: str = Keys.ENTER) -> None:
    """Presses a button with the keyboard, once the page shows it."""
    wait_for(lambda: shown(chrome, selector))
    shown(chrome, selector)[0].send_keys(key)


def accept_alert(chrome: Chrome) -> None:
    """Answers the question of the page, once it has asked."""

    def accepted() -> bool:
        with suppress(NoAlertPresentException):
            chrome.switch_to.alert.accept()
            return True
        return False

    wait_for(accepted)


def record_texts(chrome: Chrome, button: WebElement) -> None:
    """Records the texts of a button from now on: some stay for a second only."""
    chrome.execute_script(  # type: ignore[no-untyped-call]
        """
        const [button] = arguments;
        window.recordedTexts = [];
        const observer = new MutationObserver(() => recordedTexts.push(button.textContent));
        observer.observe(button, { childList: true });
        """,
        button,
    )


def had_text(chrome: Chrome, text: str) -> bool:
    """Whether the button of `record_texts` had this text since."""
    return text in chrome.execute_script("return recordedTexts")  # type: ignore[no-untyped-call]


def focused(chrome: Chrome) -> str:
    return str(chrome.execute_script("return document.activeElement.id"))  # type: ignore[no-untyped-call]
