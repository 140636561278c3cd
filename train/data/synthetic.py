"""Draw pictures of five flowers, for tests and for a demo without a network.

A folder of drawings holds the file SYNTHETIC_MARKER, which marks runs that are trained on it as synthetic.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

SYNTHETIC_MARKER = ".drawn"
SYNTHETIC_VERSION = 1  # increase it if the pictures change

Color = tuple[int, int, int]
SIDE = 480  # pixels a side of a drawn flower; reducing it smooths the edges


def draw_flowers(folder: Path, per_class: int, seed: int = 0) -> Path:
    """Draw `per_class` pictures of each flower into class folders in `folder`, which is returned.

    The same seed gives the same pictures. An existing folder stays as it is.
    """
    if folder.exists():
        return folder
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for name in FLOWERS:
            (partial / name).mkdir(parents=True)
            for number in range(per_class):
                draw_flower(name, number, seed).save(partial / name / f"{name}-{number:03d}.jpg", quality=90)
        (partial / SYNTHETIC_MARKER).write_text(
            f"drawn, version {SYNTHETIC_VERSION}, seed {seed}\n", encoding="utf-8"
        )
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            # Another command drew the same pictures at the same time.
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def draw_flower(name: str, number: int, seed: int = 0) -> Image.Image:
    """Picture `number` of the flower `name`: one to three flowers in front of leaves, grass, soil or sky."""
    rng = np.random.default_rng([seed, sorted(FLOWERS).index(name), number])
    width, height = (int(side) for side in rng.integers(240, 340, 2))
    picture = _background(rng, width, height)
    for size in sorted(rng.uniform(0.45, 0.95, rng.choice([1, 1, 2, 3]))):
        flower = Image.new("RGBA", (SIDE, SIDE))
        FLOWERS[name](ImageDraw.Draw(flower), rng)
        picture = _place(picture, flower, rng, size * min(width, height), upright=name == "tulips")
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(rng.uniform(0.7, 1.25))
    noise = rng.normal(0, rng.uniform(1, 8), (height, width, 1))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def _daisy(draw: ImageDraw.ImageDraw, rng: Generator) -> None:
    white = _jitter(rng, (243, 241, 238), 10)
    count = int(rng.integers(13, 24))
    for layer, reach in enumerate((0.47, 0.41)):
        _ring(
            draw,
            rng,
            count,
            reach,
            reach * rng.uniform(0.16, 0.24),
            _shade(white, 0.86 + 0.14 * layer),
            round_=0.5,
        )
    _disc(draw, rng, rng.uniform(0.1, 0.15), _jitter(rng, (236, 182, 32), 18), 90)


def _dandelion(draw: ImageDraw.ImageDraw, rng: Generator) -> None:
    yellow = _jitter(rng, (247, 203, 22), 14)
    for reach in np.linspace(rng.uniform(0.42, 0.48), 0.08, 6):
        shade = _shade(yellow, 1.08 - 0.55 * reach)
        _ring(draw, rng, int(30 + 60 * reach), float(reach), 0.022, shade, round_=0.3, uneven=0.12)


def _roses(draw: ImageDraw.ImageDraw, rng: Generator) -> None:
    tones: list[Color] = [(190, 20, 42), (222, 74, 110), (240, 160, 170), (236, 196, 120), (240, 232, 220)]
    color = _jitter(rng, tones[rng.integers(len(tones))], 14)
    turn = rng.uniform(0, 2 * math.pi)
    for step, reach in enumerate(np.linspace(0.44, 0.04, 22)):
        # Petals form a spiral: each is a disc at the golden angle from the last one, dark on its inner rim.
        angle = turn + step * math.pi * (3 - math.sqrt(5))
        x, y = 0.5 + 0.35 * reach * math.cos(angle), 0.5 + 0.35 * reach * math.sin(angle)
        radius = 0.72 * reach + 0.02
        _blob(draw, rng, x, y, radius, _shade(color, rng.uniform(0.55, 0.7)))
        shift = 0.13 * radius
        _blob(
            draw, rng, x + shift * math.cos(angle), y + shift * math.sin(angle), 0.93 * radius,
            _shade(color, rng.uniform(0.85, 1.12) - 0.3 * (0.44 - reach)),
        )  # fmt: skip


def _sunflowers(draw: ImageDraw.ImageDraw, rng: Generator) -> None:
    yellow = _jitter(rng, (244, 178, 14), 14)
    count = int(rng.integers(16, 26))
    for layer, reach in enumerate((0.48, 0.43)):
        _ring(draw, rng, count, reach, reach * 0.17, _shade(yellow, 0.85 + 0.17 * layer), round_=1.1)
    radius = rng.uniform(0.18, 0.25)
    _disc(draw, rng, radius, _jitter(rng, (74, 44, 22), 12), 260)
    _disc(draw, rng, 0.5 * radius, _jitter(rng, (52, 38, 20), 10), 60)


def _tulips(draw: ImageDraw.ImageDraw, rng: Generator) -> None:
    tones: list[Color] = [
        (206, 28, 40),
        (232, 96, 140),
        (246, 200, 40),
        (122, 44, 130),
        (240, 236, 226),
        (240, 120, 30),
    ]
    color = _jitter(rng, tones[rng.integers(len(tones))], 14)
    green = _jitter(rng, (70, 130, 58), 18)
    bend = rng.uniform(-0.06, 0.06)
    stem = [(0.5 + bend * t * t, 0.45 + 0.53 * t) for t in np.linspace(0, 1, 12)]
    draw.line([_at(x, y) for x, y in stem], fill=green, width=int(0.028 * SIDE), joint="curve")
    for side in (-1, 1)[: int(rng.integers(1, 3))]:
        _petal(draw, 0.5 + bend, 0.97, -math.pi / 2 + side * rng.uniform(0.25, 0.5), 0.42, 0.07, green, 0.9)
    width, height = rng.uniform(0.11, 0.15), rng.uniform(0.36, 0.44)
    # The far petals first; the near one covers the middle.
    for lean, tone, broad in (
        (-0.42, 0.72, 1.0),
        (0.42, 0.78, 1.0),
        (-0.2, 0.9, 1.1),
        (0.22, 0.95, 1.1),
        (0, 1.08, 1.2),
    ):
        lean += rng.normal(0, 0.03)
        _petal(draw, 0.5, 0.47, -math.pi / 2 + lean, height, width * broad, _shade(color, tone), 0.75)


FLOWERS: dict[str, Callable[[ImageDraw.ImageDraw, Generator], None]] = {
    "daisy": _daisy,
    "dandelion": _dandelion,
    "roses": _roses,
    "sunflowers": _sunflowers,
    "tulips": _tulips,
}


def _ring(
    draw: ImageDraw.ImageDraw,
    rng: Generator,
    count: int,
    reach: float,
    width: float,
    color: Color,
    round_: float,
    uneven: float = 0.06,
) -> None:
    """Petals around the middle."""
    turn = rng.uniform(0, 2 * math.pi)
    for number in range(count):
        angle = turn + 2 * math.pi * number / count + rng.normal(0, 0.05)
        length = reach * (1 + rng.normal(0, uneven))
        _petal(draw, 0.5, 0.5, angle, min(length, 0.5), width / 2, _jitter(rng, color, 7), round_)


def _petal(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    angle: float,
    length: float,
    half_width: float,
    color: Color,
    round_: float,
) -> None:
    """A petal that starts at (x, y); `round_` below 1 makes its tip round, above 1 pointed."""
    along = np.linspace(0, 1, 16)
    across = half_width * np.sin(np.pi * along**0.8) ** round_
    for scale, shade in ((1.0, 0.82), (0.82, 1.0)):
        outline = np.concatenate([across, -across[::-1]]) * scale
        distance = np.concatenate([along, along[::-1]]) * length * (0.5 + 0.5 * scale)
        xs = x + distance * math.cos(angle) - outline * math.sin(angle)
        ys = y + distance * math.sin(angle) + outline * math.cos(angle)
        draw.polygon([_at(px, py) for px, py in zip(xs, ys, strict=True)], fill=_shade(color, shade))


def _disc(draw: ImageDraw.ImageDraw, rng: Generator, radius: float, color: Color, dots: int) -> None:
    """The middle of a flower: a disc with dots on Vogel's spiral."""
    _blob(draw, rng, 0.5, 0.5, radius, color)
    for number in range(dots):
        distance, angle = radius * math.sqrt(number / dots), number * math.pi * (3 - math.sqrt(5))
        x, y = _at(0.5 + distance * math.cos(angle), 0.5 + distance * math.sin(angle))
        size = 0.008 * SIDE
        draw.ellipse((x - size, y - size, x + size, y + size), fill=_shade(color, rng.uniform(0.6, 1.4)))


def _blob(draw: ImageDraw.ImageDraw, rng: Generator, x: float, y: float, radius: float, color: Color) -> None:
    """A disc with an uneven rim."""
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    rim = radius * (
        1 + 0.05 * np.sin(3 * angles + rng.uniform(0, 6)) + 0.03 * np.sin(5 * angles + rng.uniform(0, 6))
    )
    draw.polygon(
        [_at(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(rim, angles, strict=True)], fill=color
    )


def _background(rng: Generator, width: int, height: int) -> Image.Image:
    """Blurred leaves, soil or sky, with blades of grass in front."""
    scenes: list[tuple[Color, Color]] = [
        ((38, 72, 30), (96, 142, 66)),
        ((60, 92, 48), (150, 176, 92)),
        ((84, 62, 44), (92, 120, 60)),
        ((120, 160, 206), (84, 128, 62)),
        ((28, 34, 28), (58, 84, 48)),
        ((170, 168, 158), (110, 132, 86)),
    ]
    top, bottom = (np.array(_jitter(rng, tone, 16)) for tone in scenes[rng.integers(len(scenes))])
    ramp = np.linspace(0, 1, height)[:, None, None]
    picture = Image.fromarray(
        np.broadcast_to(top + (bottom - top) * ramp, (height, width, 3)).astype(np.uint8)
    )
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(20, 60))):
        x, y, size = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(8, 60)
        tone = _jitter(rng, _color(top if rng.random() < 0.5 else bottom), 34)
        draw.ellipse((x - size, y - size * rng.uniform(0.3, 1), x + size, y + size), fill=tone)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(5, 14)))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 26))):
        x, lean = rng.uniform(0, width), rng.uniform(-60, 60)
        tip = height * rng.uniform(0.2, 0.9)
        draw.line(
            (x, height, x + lean, tip), fill=_jitter(rng, (70, 120, 50), 30), width=int(rng.integers(2, 6))
        )
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3)))


def _place(
    picture: Image.Image, flower: Image.Image, rng: Generator, size: float, upright: bool
) -> Image.Image:
    """Put a flower into the picture: rotated, tilted, with a soft shadow."""
    pixels = max(int(size), 16)
    flower = flower.rotate(rng.normal(0, 10) if upright else rng.uniform(0, 360), Image.Resampling.BICUBIC)
    squash = rng.uniform(0.85, 1) if upright else rng.uniform(0.6, 1)
    flower = flower.resize((pixels, int(pixels * squash)), Image.Resampling.LANCZOS)
    if not upright:
        flower = flower.rotate(rng.normal(0, 25), Image.Resampling.BICUBIC, expand=True)
    room = (picture.width - flower.width, picture.height - flower.height)
    x, y = (int(side * rng.uniform(0.2, 0.8)) for side in room)
    shadow = flower.getchannel("A").filter(ImageFilter.GaussianBlur(6)).point(lambda value: value // 3)
    picture.paste((12, 20, 10), (x + 5, y + 8), shadow)
    picture.paste(flower, (x, y), flower)
    return picture


def _at(x: float, y: float) -> tuple[float, float]:
    return x * SIDE, y * SIDE


def _jitter(rng: Generator, color: Color, spread: float) -> Color:
    return _color(np.array(color) + rng.normal(0, spread / 2) + rng.normal(0, spread / 3, 3))


def _shade(color: Color, factor: float) -> Color:
    return _color(np.array(color) * factor)


def _color(values: NDArray[np.float64]) -> Color:
    red, green, blue = (int(value) for value in np.clip(values, 0, 255))
    return red, green, blue
