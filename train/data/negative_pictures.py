"""Make pictures that show none of a user's classes: drawings of objects on varied backgrounds, and shapes.

The drawings (models/negatives) are transparent, because a drawing on white is recognized by its background
alone. Only integer arithmetic and bilinear resizing make a picture, so that it has the same bytes on every
machine: features are cached by them, and a run folder records their hash.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageOps

from train.data.dataset import HashError, PhotosError, file_sha256

ARCHIVE = Path(__file__).parents[2] / "models/negatives/drawings.zip"
ARCHIVE_SHA256 = "7e1222aec8c804e32163088cf1f98de8e0d13fcc1dc5d78f1c796aa8ee2a8a5d"
NEGATIVES_VERSION = 1  # increase it if the pixels of a picture change
SIDE = 192  # pixels a side of a picture

Pixels = NDArray[np.int32]  # [SIDE, SIDE, 3], 0 to 255


@cache
def drawings() -> dict[str, bytes]:
    """Encoded drawings by their names, such as "food/fruit/apple.webp", in an order by a hash of the name.

    Raises PhotosError if the archive is missing or has another hash.
    """
    remedy = "restore the file from the repository, or use --none DIR or --no-negatives"
    try:
        if file_sha256(ARCHIVE) != ARCHIVE_SHA256:
            raise PhotosError(f"{ARCHIVE}: has been changed; {remedy}")
    except HashError as error:
        raise PhotosError(f"{ARCHIVE}: {error}; {remedy}") from None
    with zipfile.ZipFile(ARCHIVE) as archive:
        names = sorted(archive.namelist(), key=lambda name: hashlib.sha256(name.encode()).digest())
        return {name: archive.read(name) for name in names}


def make_picture(kind: str, name: str) -> bytes:
    """The picture of a kind in KINDS for a drawing, as a BMP file."""
    picture = KINDS[kind](name, _rng(kind, name))
    data = io.BytesIO()
    picture.save(data, "BMP")
    return data.getvalue()


def _on_white(name: str, rng: Generator) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    drawing = _drawing(name)
    picture.paste(drawing, ((SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2), drawing)
    return picture


def _composited(name: str, rng: Generator) -> Image.Image:
    """The drawing on a generated background, in half of the pictures with one or two others behind it."""
    picture = _to_image(_surfaces(rng))
    others = [*drawings()]
    for _ in range(int(rng.choice([0, 0, 1, 2]))):
        _place(picture, _drawing(others[rng.integers(len(others))]), rng, int(rng.integers(50, 110)))
    _place(picture, _drawing(name), rng, int(rng.integers(80, 180)))
    return _photographed(picture, rng)


def _shapes(name: str, rng: Generator) -> Image.Image:
    """Ellipses, rectangles and triangles of one color each on a gradient; the drawing is not shown."""
    pixels = _gradient(rng)
    y, x = np.mgrid[:SIDE, :SIDE]
    for _ in range(int(rng.integers(3, 9))):
        center_x, center_y = (int(value) for value in rng.integers(0, SIDE, 2))
        width, height = (int(value) for value in rng.integers(8, 70, 2))
        dx, dy = x - center_x, y - center_y
        masks = (
            (dx * height) ** 2 + (dy * width) ** 2 <= (width * height) ** 2,
            (abs(dx) <= width) & (abs(dy) <= height),
            (dy <= height) & (abs(dx) * 2 * height <= width * (dy + height)),
        )
        pixels[masks[rng.integers(len(masks))]] = _color(rng, 120)
    return _photographed(_to_image(pixels), rng)


KINDS: dict[str, Callable[[str, Generator], Image.Image]] = {
    "composited": _composited,
    "white": _on_white,
    "shapes": _shapes,
}


def _rng(kind: str, name: str) -> Generator:
    digest = hashlib.sha256(drawings()[name]).hexdigest()
    return np.random.default_rng([int(digest[:16], 16), sorted(KINDS).index(kind), NEGATIVES_VERSION])


def _drawing(name: str) -> Image.Image:
    with Image.open(io.BytesIO(drawings()[name])) as picture:
        return picture.convert("RGBA")


def _place(picture: Image.Image, drawing: Image.Image, rng: Generator, longest: int) -> None:
    """Paste a drawing of `longest` pixels, maybe mirrored, with a shadow to the right of it."""
    width, height = (max(1, side * longest // max(drawing.size)) for side in drawing.size)
    drawing = drawing.resize((width, height), Image.Resampling.BILINEAR)
    if rng.integers(2):
        drawing = ImageOps.mirror(drawing)
    # A quarter of the drawing may be outside the picture.
    x = int(rng.integers(-width // 4, SIDE - 3 * width // 4))
    y = int(rng.integers(-height // 4, SIDE - 3 * height // 4))
    alpha = drawing.getchannel("A")
    if rng.integers(2):
        small = alpha.resize((max(1, width // 6), max(1, height // 6)), Image.Resampling.BILINEAR)
        shadow = small.resize((width, height), Image.Resampling.BILINEAR).point(lambda value: value // 3)
        picture.paste((20, 20, 24), (x + longest // 20, y + longest // 16), shadow)
    picture.paste(drawing, (x, y), alpha)


def _surfaces(rng: Generator) -> Pixels:
    """One surface, or two with a horizontal edge, such as a wall and a table."""
    pixels = _surface(rng)
    if rng.integers(3) == 0:
        edge = int(rng.integers(SIDE // 3, 3 * SIDE // 4))
        pixels[edge:] = _surface(rng)[edge:]
    return pixels


def _surface(rng: Generator) -> Pixels:
    """A plain color, a gradient, a rough surface, or a grain as of wood."""
    kind = rng.integers(4)
    if kind == 1:
        return _gradient(rng)
    pixels = np.zeros((SIDE, SIDE, 3), np.int32) + _color(rng, 50)
    if kind == 2:
        for cells in (3, 9, 27, 96):
            pixels += _noise(rng, (cells, cells), int(rng.integers(5, 30)))
    elif kind == 3:
        for cells in (6, 24, 96):
            size = (cells, 2) if rng.integers(2) else (2, cells)
            pixels += _noise(rng, size, int(rng.integers(8, 28)))
    return pixels


def _gradient(rng: Generator) -> Pixels:
    y, x = np.mgrid[:SIDE, :SIDE]
    ramp = (y, x, (x + y) // 2)[rng.integers(3)][..., None]
    first, second = _color(rng, 60), _color(rng, 60)
    mixed: Pixels = (first * (SIDE - ramp) + second * ramp).astype(np.int32) // SIDE
    return mixed


def _color(rng: Generator, saturation: int) -> Pixels:
    """RGB [3]: a gray, with each channel changed by at most `saturation`."""
    return (
        (rng.integers(30, 236) + rng.integers(-saturation, saturation + 1, 3)).clip(0, 255).astype(np.int32)
    )


def _noise(rng: Generator, cells: tuple[int, int], amplitude: int) -> Pixels:
    """Soft gray noise [SIDE, SIDE, 1] from -amplitude to amplitude, with this number of cells."""
    random = Image.fromarray(rng.integers(0, 256, cells, np.uint8))
    soft = np.asarray(random.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.int32)
    return (soft[..., None] - 128) * amplitude // 128


def _photographed(picture: Image.Image, rng: Generator) -> Image.Image:
    """The picture with another brightness and contrast, maybe out of focus, and with sensor noise."""
    if rng.integers(3) == 0:
        side = int(rng.integers(SIDE // 3, SIDE))
        picture = picture.resize((side, side), Image.Resampling.BILINEAR)
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, np.int32)
    contrast, brightness = int(rng.integers(60, 116)), int(rng.integers(-30, 31))
    grain = int(rng.integers(1, 13))
    noise = rng.integers(-grain, grain + 1, (SIDE, SIDE, 1))
    return _to_image((pixels - 128) * contrast // 100 + 128 + brightness + noise)


def _to_image(pixels: NDArray[Any]) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
