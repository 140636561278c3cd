"""The page's worker beside the runtime: the same pixels from the same files, and the same answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import Chrome

from runtime import Classifier
from runtime.browser.engine_package import EnginePackage
from runtime.browser.page import STATIC
from runtime.model_file.golden import golden_picture
from runtime.preprocess.picture import read_picture
from tests.helpers import PATIENCE, RELEASED, ROOT
from tests.runtime.browser.conftest import StaticServer
from tests.runtime.server.browser import DESKTOP, browser

pytestmark = pytest.mark.slow

SIZE = (192, 192)  # of the released model's input
START = """
const done = arguments[arguments.length - 1];
const get = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
window.worker = new Worker("/worker.js");
window.ask = (values) => new Promise((resolve) => {
  worker.onmessage = ({ data }) => resolve(data);
  worker.postMessage(values);
});
(async () => {
  const [script, wasm, model] = await Promise.all(["/engine.mjs", "/engine.wasm", "/model.onnx"].map(get));
  return ask({ id: 1, action: "start", script, wasm, model, inputSize: arguments[0] });
})().then(done, (error) => done({ error: String(error) }));
"""
READ = """
const done = arguments[arguments.length - 1];
(async () => {
  const picture = await (await fetch(arguments[0])).blob();
  const pixels = await ask({ id: 2, action: "readPixels", picture });
  const answer = await ask({ id: 3, action: "classify", picture });
  const text = pixels.result && [...pixels.result].map((value) => String.fromCharCode(value)).join("");
  return { error: pixels.error, pixels: text && btoa(text), answer: answer.result };
})().then(done, (error) => done({ error: String(error) }));
"""


@pytest.fixture(scope="module")
def chrome(engine: EnginePackage, static_server: StaticServer) -> Iterator[Chrome]:
    """A browser whose worker has loaded the released model."""
    files = {
        "index.html": b"<!doctype html><title>test</title>",
        "worker.js": (STATIC / "worker.js").read_bytes(),
        "engine.mjs": engine.script,
        "engine.wasm": engine.wasm,
        "model.onnx": (RELEASED / "flowers_int8.onnx").read_bytes(),
    }
    for name, data in files.items():
        (static_server.folder / name).write_bytes(data)
    with browser(DESKTOP) as started:
        started.set_script_timeout(PATIENCE)
        started.get(static_server.url)
        answer = started.execute_async_script(START, list(SIZE))
        assert "error" not in answer, answer
        yield started


def drawn(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(golden_picture(height, width)).convert(mode)


def transparent() -> Image.Image:
    picture = drawn(300, 200, "RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size).point(lambda value: 255 * (value > 99)))
    return picture


PICTURES: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "reduced.png": (drawn(641, 483), {}),
    "narrow.png": (drawn(50, 700), {}),
    "enlarged.png": (drawn(64, 48), {}),
    "same.png": (drawn(192, 192), {}),
    "grey.png": (drawn(300, 200, "L"), {}),
    "palette.gif": (drawn(300, 200).quantize(64), {}),
    "transparent.png": (transparent(), {}),
    "lossless.webp": (drawn(300, 200), {"lossless": True}),
    "full_color.jpg": (drawn(500, 375), {"quality": 90, "subsampling": 0}),
    "phone.jpg": (drawn(480, 360), {"quality": 90}),
    **{f"turned_{number}.jpg": (drawn(480, 360), {"orientation": number}) for number in range(2, 9)},
}
MEAN_LIMITS = {
    ".jpg": 0.5,  # another JPEG decoder may round otherwise
    "narrow.png": 0.05,  # Pillow resizes its rows first
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_pixels_equal_those_of_the_runtime(
    name: str, chrome: Chrome, static_server: StaticServer
) -> None:
    picture, options = PICTURES[name]
    if orientation := options.get("orientation"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"exif": exif, "quality": 90}
    file = io.BytesIO()
    picture.save(file, Path(name).suffix[1:].replace("jpg", "jpeg"), **options)
    (static_server.folder / name).write_bytes(file.getvalue())
    read = chrome.execute_async_script(READ, name)
    assert read["error"] is None
    pixels = np.frombuffer(base64.b64decode(read["pixels"]), np.uint8).reshape(*SIZE, 3).astype(int)
    difference = np.abs(pixels - read_picture(file.getvalue(), SIZE))
    limit = MEAN_LIMITS.get(name, MEAN_LIMITS.get(Path(name).suffix, 0))
    assert difference.mean() <= limit and (difference.max() <= 1 or name.endswith(".jpg"))


def test_a_file_that_is_no_picture_is_an_error_of_one_line(
    chrome: Chrome, static_server: StaticServer
) -> None:
    (static_server.folder / "no.jpg").write_bytes(b"no picture")
    assert chrome.execute_async_script(READ, "no.jpg")["error"].startswith("this browser cannot read it")


def test_the_answers_agree_with_the_runtime(chrome: Chrome, static_server: StaticServer) -> None:
    classifier = Classifier(RELEASED, engine="onnx", threads=1)
    for name, data in {
        "sunflower.jpg": (ROOT / "docs/sunflower.jpg").read_bytes(),
        "large.jpg": _large_jpeg(),  # the runtime decodes it at a reduced scale, the browser does not
    }.items():
        (static_server.folder / name).write_bytes(data)
        here = classifier.infer(read_picture(data, SIZE))
        there = chrome.execute_async_script(READ, name)["answer"]
        difference = np.abs(np.array(there["probabilities"]) - here.probabilities).max()
        assert difference <= 0.03
        assert (there["known"] >= 0.5) == (here.known is not None and here.known >= 0.5)
        assert there["ms"] > 0 and there["decodeMs"] > 0


def _large_jpeg() -> bytes:
    picture = Image.open(ROOT / "docs/sunflower.jpg").resize((2400, 1800), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()
