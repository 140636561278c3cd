"""Take the README's pictures of the page in Chromium: drawn flowers before the camera, and as photos.

    python -m benchmarks.screenshots

Needs Debian's packages chromium and chromium-driver.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from train.data.synthetic import draw_flower

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).parent
PHOTOS = (("tulips", 1), ("daisy", 0), ("dandelion", 1), ("roses", 1))  # drawn pictures, by their number
UNKNOWN = ("ground.jpg", (92, 108, 120))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clip = draw_clip(Path(folder) / "garden.mp4", [("daisy", 0), ("tulips", 0), ("sunflowers", 0)])
        photos = []
        for name, number in PHOTOS:
            photos.append(Path(folder) / f"{name}.jpg")
            draw_flower(name, number).save(photos[-1], quality=92)
        photos.insert(2, Path(folder) / UNKNOWN[0])
        Image.new("RGB", (320, 240), UNKNOWN[1]).save(photos[2])
        for name, size, dark in (("desktop", (1280, 1300), False), ("phone", (390, 1500), True)):
            with serving("--camera", str(clip)) as address, chromium(size, dark=dark) as browser:
                shoot(browser, address, photos, HERE / f"page_{name}.png")


def draw_clip(path: Path, flowers: list[tuple[str, int]]) -> Path:
    """Half a minute of film: the flowers one after the other, slowly come closer to."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 960, 540, "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast"}
        for name, number in flowers:
            picture = draw_flower(name, number).resize((1040, 880), Image.Resampling.BICUBIC)
            for step in range(120 if name != flowers[-1][0] else 900):
                left, top = min(step, 240) / 6, 120 + min(step, 240) / 4
                frame = picture.crop((int(left), int(top), int(left) + 960, int(top) + 540))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """A service of the released model on a free port: its address."""
    command = [sys.executable, "-m", "runtime.serve", "--port", "0", "--model", "models/flowers", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            print(process.stdout.readline(), end="")
            found = re.match(r"http://\S+", process.stdout.readline())
            assert found
            yield found[0]
        finally:
            process.terminate()


@contextmanager
def chromium(size: tuple[int, int], *, dark: bool = False) -> Iterator[webdriver.Chrome]:
    """Debian's, without a window, whose page is `size` pixels wide and high."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        width, height = size
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        if width < 600:
            browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
            features.append({"name": "pointer", "value": "coarse"})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        yield browser
    finally:
        browser.quit()


def shoot(browser: webdriver.Chrome, address: str, photos: list[Path], out: Path) -> None:
    browser.get(address)
    wait = WebDriverWait(browser, 60)
    wait.until(lambda page: page.find_element(By.ID, "ask").is_displayed())
    browser.find_element(By.ID, "file").send_keys("\n".join(map(str, photos)))
    wait.until(lambda page: len(page.find_elements(By.CSS_SELECTOR, ".answer:not(.waiting)")) == len(photos))
    wait.until(lambda page: "sunflowers" in page.find_element(By.ID, "live-label").text)
    time.sleep(4)
    shot = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    shot.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)
    height = browser.execute_script("return document.documentElement.scrollHeight")
    print(f"{out.name}: the page is {height} pixels high, {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
