"""Takes the pictures of the web page for the documentation, in Chromium.

    python -m benchmarks.screenshots

The service shows a clip of drawn flowers as its camera and classifies drawn photos. Writes page_desktop.png
and page_phone.png beside this file. Needs Debian's packages chromium and chromium-driver.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.helpers import RELEASED
from tests.serving import serve_in_process
from train.data.synthetic import draw_flower

HERE = Path(__file__).parent
PHOTOS = (("tulips", 1), ("daisy", 0), ("dandelion", 1), ("roses", 1))  # class and seed of drawn photos
UNKNOWN_COLOR = (92, 108, 120)  # of a plain picture, which is no flower
CLIP = (("daisy", 0), ("tulips", 0), ("sunflowers", 0))
FPS, FRAMES_PER_FLOWER, FRAMES_OF_LAST_FLOWER = 30, 120, 900
SETTLE = 4.0  # seconds for the percentages and the history to settle


@dataclass(frozen=True)
class Screen:
    name: str
    width: int  # pixels
    height: int
    is_dark: bool

    @property
    def is_phone(self) -> bool:
        return self.width < 600


SCREENS = (Screen("desktop", 1280, 1300, is_dark=False), Screen("phone", 390, 1500, is_dark=True))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clip = draw_clip(Path(folder) / "garden.mp4")
        photos = draw_photos(Path(folder))
        for screen in SCREENS:
            arguments = ("--model", RELEASED, "--camera", clip)
            with serve_in_process(*arguments) as service, open_chromium(screen) as browser:
                take_screenshot(browser, service.url, photos, HERE / f"page_{screen.name}.png")


def draw_photos(folder: Path) -> list[Path]:
    paths = []
    for name, seed in PHOTOS:
        paths.append(folder / f"{name}.jpg")
        draw_flower(name, seed).save(paths[-1], quality=92)
    paths.insert(2, folder / "ground.jpg")
    Image.new("RGB", (320, 240), UNKNOWN_COLOR).save(paths[2])
    return paths


def draw_clip(path: Path) -> Path:
    """A clip of half a minute that zooms slowly into one flower after the other."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 960, 540, "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast"}
        for name, seed in CLIP:
            picture = draw_flower(name, seed).resize((1040, 880), Image.Resampling.BICUBIC)
            for step in range(FRAMES_PER_FLOWER if name != CLIP[-1][0] else FRAMES_OF_LAST_FLOWER):
                left, top = min(step, 240) / 6, 120 + min(step, 240) / 4
                frame = picture.crop((int(left), int(top), int(left) + 960, int(top) + 540))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


@contextmanager
def open_chromium(screen: Screen) -> Iterator[webdriver.Chrome]:
    """A headless Chromium whose viewport has the screen's size and color scheme."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        viewport = {"width": screen.width, "height": screen.height, "deviceScaleFactor": 1}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**viewport, "mobile": screen.is_phone})
        features = [{"name": "prefers-color-scheme", "value": "dark" if screen.is_dark else "light"}]
        if screen.is_phone:
            browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
            features.append({"name": "pointer", "value": "coarse"})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        yield browser
    finally:
        browser.quit()


def take_screenshot(browser: webdriver.Chrome, url: str, photos: list[Path], out: Path) -> None:
    """Classifies the photos, waits for the last flower of the clip, and saves the page with 256 colors."""
    browser.get(url)
    wait = WebDriverWait(browser, 60)
    wait.until(lambda page: page.find_element(By.ID, "photos").is_displayed())
    browser.find_element(By.ID, "photo-files").send_keys("\n".join(map(str, photos)))
    wait.until(lambda page: len(page.find_elements(By.CSS_SELECTOR, ".result:not(.pending)")) == len(photos))
    wait.until(lambda page: CLIP[-1][0] in page.find_element(By.ID, "camera-label").text)
    time.sleep(SETTLE)
    picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)
    height = browser.execute_script("return document.documentElement.scrollHeight")
    print(f"{out.name}: the page is {height} pixels high, {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
