"""Teaching on the page in a real browser, as a person does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from runtime.inference.taught_photos import MAX_NEW_LABEL
from tests.helpers import wait_for
from tests.runtime.camera.helpers import BLUE, RED, jpeg, mjpeg_server, plain
from tests.runtime.scene import borderline_pictures, class_pictures, save_pictures, scene_pictures
from tests.runtime.server.browser import (
    browser_errors,
    choose,
    focused,
    had_text,
    press,
    record_texts,
    shown,
    text,
)
from tests.serving import Client, serve_in_thread

CARDS = "#results > li"


@contextmanager
def open_page(chrome: Chrome, model: Path, scheme: str = "light", **config: object) -> Iterator[Client]:
    """The page of a service in a light or dark browser."""
    with serve_in_thread(model, **config) as service:
        browser_errors(chrome)  # of earlier tests, whose services stopped
        feature = {"name": "prefers-color-scheme", "value": scheme}
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        chrome.get(service.url)
        wait_for(lambda: text(chrome, "#model-name") == "quarters")
        yield service
        chrome.get("about:blank")  # else the page polls the stopped service during the next test


def upload(chrome: Chrome, pictures: list[Path]) -> None:
    choose(chrome, *pictures)
    wait_for(lambda: len(shown(chrome, f"{CARDS} .wrong")) >= len(pictures))


def labels(chrome: Chrome) -> list[str]:
    """The first words of the answers, the newest photo first; in one reading, while they may change."""
    script = "return [...document.querySelectorAll(arguments[0])].map((found) => found.innerText)"
    return [(answer.split() or [""])[0] for answer in chrome.execute_script(script, f"{CARDS} .label")]


def options(chrome: Chrome, name: str) -> list[WebElement]:
    """The buttons of the open menu with this name."""
    with suppress(StaleElementReferenceException):  # the menu has just got another class
        buttons = shown(chrome, ".wrong-actions .name-option")
        return [button for button in buttons if button.text.split("\n")[-1] == name]
    return []


def choose_option(chrome: Chrome, name: str) -> None:
    wait_for(lambda: options(chrome, name))
    (found,) = options(chrome, name)
    found.click()


def fits(chrome: Chrome) -> bool:
    width, inner = chrome.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    return bool(width <= inner)


def background(chrome: Chrome, selector: str) -> int:
    """The brightness of an element's background, 0 to 765."""
    script = f"return getComputedStyle(document.querySelector('{selector}')).backgroundColor"
    return sum(int(part) for part in chrome.execute_script(script).strip("rgba()").split(",")[:3])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_person_adds_a_class_and_undoes_it(
    chrome: Chrome, model: Path, scheme: str, tmp_path: Path
) -> None:
    scene = sorted(save_pictures(scene_pictures(8, seed=1), tmp_path / "scene").iterdir())
    with open_page(chrome, model, scheme) as service:
        upload(chrome, scene)
        before = labels(chrome)
        assert "sky" not in before and not shown(chrome, "#teach")
        for number, button in enumerate(shown(chrome, f"{CARDS} .wrong")):
            button.click()
            if number == 0:
                assert fits(chrome) and (background(chrome, ".wrong-actions .name-menu") > 600) == (
                    scheme == "light"
                )
                choose_option(chrome, "new name")
                chrome.switch_to.active_element.send_keys("sky", Keys.ENTER)
            else:
                choose_option(chrome, "sky")
            wait_for(lambda button=button: button.text == "Named sky")
        wait_for(lambda: "8 of 8 photos" in text(chrome, "#teach-count"))
        wait_for(lambda: len(shown(chrome, "#teach-groups img")) == 8)
        assert "new class" in text(chrome, "#teach-groups") and fits(chrome)
        assert labels(chrome) == before  # until "Learn"
        (learn,) = shown(chrome, ".learn-here")  # beside the picture that was named last
        learn.click()
        wait_for(lambda: "sky" in text(chrome, "#teach-message"))
        wait_for(lambda: labels(chrome) == ["sky"] * 8)
        wait_for(lambda: "sky" in text(chrome, "#labels").split("\n"))
        wait_for(lambda: text(chrome, "#teach-count") == "8 photos")
        wait_for(lambda: shown(chrome, "#undo-learning"))
        chrome.find_element(By.ID, "undo-learning").click()
        wait_for(lambda: labels(chrome) == before)
        assert service.status()["learning"]["learned"] is None
        assert browser_errors(chrome) == [] and fits(chrome)


@pytest.mark.slow
def test_a_person_teaches_with_the_keyboard_alone(chrome: Chrome, model: Path, tmp_path: Path) -> None:
    files = sorted(save_pictures(borderline_pictures(2, seed=8), tmp_path / "flowers").iterdir())
    with open_page(chrome, model):
        upload(chrome, files)
        wrong = shown(chrome, f"{CARDS} .wrong")
        assert labels(chrome) == ["blau", "blau"]
        wrong[0].send_keys(Keys.ENTER)
        keys = chrome.switch_to.active_element
        assert keys.text.split("\n")[-1] == "blau"  # the focus is on the first class
        keys.send_keys(Keys.ESCAPE)
        assert chrome.switch_to.active_element == wrong[0] and not shown(chrome, ".wrong-actions .name-menu")
        wrong[0].send_keys(Keys.SPACE)
        chrome.switch_to.active_element.send_keys("2")
        wait_for(lambda: wrong[0].text == "Named grün")
        assert chrome.switch_to.active_element == wrong[0]
        wrong[1].send_keys(Keys.ENTER)
        chrome.switch_to.active_element.send_keys("+")
        chrome.switch_to.active_element.send_keys("BLAU", Keys.ENTER)
        wait_for(lambda: "blau" in text(chrome, ".wrong-actions .name-menu .error"))  # exists in another case
        chrome.switch_to.active_element.send_keys(Keys.ESCAPE)
        wrong[1].send_keys(Keys.ENTER)
        chrome.switch_to.active_element.send_keys("0")
        wait_for(lambda: wrong[1].text == "Named none of these")
        chrome.switch_to.active_element.send_keys(Keys.TAB)
        assert chrome.switch_to.active_element.text == "Learn"
        chrome.switch_to.active_element.send_keys(Keys.ENTER)
        wait_for(lambda: labels(chrome)[0] == "grün")
        wait_for(lambda: text(chrome, "#teach-count") == "2 photos")
        press(chrome, "#undo-learning")
        wait_for(lambda: labels(chrome)[0] == "blau")
        wait_for(lambda: focused(chrome) == "learn")
        assert [line for line in browser_errors(chrome) if "400" not in line] == []


def test_a_wrong_name_is_corrected_and_a_picture_removed(chrome: Chrome, model: Path, tmp_path: Path) -> None:
    files = sorted(save_pictures(class_pictures(2, seed=8)[0], tmp_path / "flowers").iterdir())
    with open_page(chrome, model) as service:
        upload(chrome, files)
        (button, _) = shown(chrome, f"{CARDS} .wrong")
        button.click()
        field = chrome.find_element(By.CSS_SELECTOR, ".wrong-actions .name-form input")
        assert field.get_property("maxLength") == MAX_NEW_LABEL
        button.click()
        for key, name in (("1", "blau"), ("3", "红")):
            button.click()
            chrome.switch_to.active_element.send_keys(key)
            wait_for(lambda name=name: button.text == f"Named {name}")
        wait_for(lambda: text(chrome, "#teach-groups h3").split("\n") == ["红", "1 photo"])
        press(chrome, "#teach-groups li button")
        wait_for(lambda: service.status()["learning"]["photos"] == 0)
        wait_for(lambda: focused(chrome) == "choose-photos" and not shown(chrome, "#teach"))
        assert browser_errors(chrome) == []


def test_the_live_picture_is_named_as_the_person_saw_it(chrome: Chrome, model: Path, tmp_path: Path) -> None:
    red, blue, is_blue = jpeg(plain(RED)), jpeg(plain(BLUE)), Event()
    with (
        mjpeg_server(lambda number: blue if is_blue.is_set() else red) as server,
        open_page(chrome, model, camera=server.address) as service,
    ):
        wait_for(lambda: "红" in text(chrome, "#camera-label"))
        (button,) = shown(chrome, "#camera .wrong")
        record_texts(chrome, button)
        button.click()
        is_blue.set()
        wait_for(lambda: "blau" in text(chrome, "#camera-label"))
        choose_option(chrome, "none of these")
        wait_for(lambda: had_text(chrome, "Named none of these"))
        (photo,) = service.call("GET", "/taught")[1]["photos"]
        assert photo["label"] == "none"
        (stored,) = (tmp_path / "models" / "quarters.learned" / "photos").rglob("*.jpg")
        color = Image.open(stored).getpixel((32, 24))
        assert isinstance(color, tuple) and color[0] > 200 and color[2] < 60
        wait_for(lambda: button.text == "Wrong?")
        assert browser_errors(chrome) == []


def takes_keys(chrome: Chrome) -> bool:
    """Whether the review has the answer to the last key, and the focus."""
    menu = "document.querySelector('#review .name-menu')"
    script = f"return {menu}.ariaDisabled !== 'true' && {menu}.contains(document.activeElement)"
    return bool(chrome.execute_script(script))


def test_the_review_names_and_skips_with_one_key(chrome: Chrome, model: Path, tmp_path: Path) -> None:
    dark = class_pictures(3, seed=9)[0] // 6
    dark[1], dark[2] = np.rot90(scene_pictures(1, seed=1)[0]) // 6, scene_pictures(1, seed=2)[0] // 6
    with open_page(chrome, model) as service:
        for path in sorted(save_pictures(dark, tmp_path / "dark").iterdir()):
            service.classify(path.read_bytes())
        wait_for(lambda: text(chrome, "#review-count") == "3 pictures")
        assert text(chrome, "#review-answer") == "unknown" and fits(chrome)
        chrome.find_element(By.CSS_SELECTOR, "#review .name-option").send_keys("2")
        wait_for(lambda: text(chrome, "#review-count") == "2 pictures" and takes_keys(chrome))
        chrome.switch_to.active_element.send_keys("s")
        wait_for(lambda: text(chrome, "#review-count") == "1 picture" and takes_keys(chrome))
        chrome.switch_to.active_element.send_keys("n")
        wait_for(lambda: not shown(chrome, "#review"))
        wait_for(lambda: focused(chrome) == "learn")
        named = [photo["label"] for photo in service.call("GET", "/taught")[1]["photos"]]
        assert named == ["grün", "none"] and browser_errors(chrome) == []


def test_the_page_says_why_it_does_not_learn(chrome: Chrome, knowing: Path, model: Path) -> None:
    with open_page(chrome, model, classifier_options={"learned": "none"}):
        wait_for(lambda: "--learned none" in text(chrome, "#model"))
        assert not shown(chrome, "#teach") and not shown(chrome, "#review")
