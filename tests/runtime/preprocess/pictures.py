"""Pictures that several tests of preprocessing share."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


SIZE = (96, 64)  # height, width: not square, so that a mix-up shows


def scene(width: int, height: int) -> Image.Image:
    """A smooth picture whose corners differ in colour: any turn, flip or channel swap shows."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pixels = np.stack([255 * x, 255 * y, 255 * (1 - x) * (1 - y)], axis=-1)
    pixels += 20 * np.sin(40 * x)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def resized(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BILINEAR))


def furthest(one: Pixels, other: Pixels) -> int:
    assert one.shape == other.shape == (*SIZE, 3) and one.dtype == other.dtype == np.uint8
    return int(np.abs(one.astype(int) - other).max())


PICTURE = scene(200, 150)


GREY = PICTURE.convert("L")


DEEP = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)  # I;16


def bomb(width: int, height: int) -> bytes:
    """A PNG's header: what would be in it does not matter."""
    return chunked(
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))
    )


def chunked(*chunks: tuple[bytes, bytes]) -> bytes:
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in (*chunks, (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    data = bytearray(encode(Image.new("L", (8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    """A WebP whose header claims another size."""
    data = bytearray(encode(Image.new("L", (8, 8)), "WEBP"))
    assert data[12:16] == b"VP8 "
    data[26:30] = struct.pack("<HH", width, height)
    return bytes(data)
