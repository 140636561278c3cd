"""Bit depths, transparency and ICC profiles become 8-bit sRGB."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
from PIL import Image, ImageCms

from runtime.preprocess.picture import read_picture
from tests.runtime.preprocess.pictures import (
    PICTURE,
    SIZE,
    chunked,
    encode,
    furthest,
    resized,
)


def s15(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2.4, which ImageCms cannot make for these color spaces."""
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"a\0" + bytes(79),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": b"XYZ \0\0\0\0" + s15(0.9642, 1, 0.8249),
        **tags,
    }
    table, body, at = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", at + len(body), len(value))
        body += value
    header = bytearray(128)
    header[8:12], header[12:24], header[36:40] = b"\x02\x40\0\0", device + space + connection, b"acsp"
    header[68:80] = s15(0.9642, 1, 0.8249)
    data = bytes(header) + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(data)) + data[4:]


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)


def display_p3() -> bytes:
    """With the primaries of Display P3, and gamma 2.2."""
    primaries = {
        b"r": (0.51512, 0.2412, -0.00105),
        b"g": (0.29198, 0.69225, 0.04189),
        b"b": (0.1571, 0.06657, 0.78407),
    }
    tags = {name + b"XYZ": b"XYZ \0\0\0\0" + s15(*xyz) for name, xyz in primaries.items()}
    tags |= {name + b"TRC": curve(2.2) for name in primaries}
    return profile(b"mntr", b"RGB ", b"XYZ ", tags)


def linear_grey() -> bytes:
    return profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve(1)})


def grey_cyan() -> bytes:
    """Of a printer whose cyan ink is a medium grey, and whose magenta and yellow inks are white."""
    ramp = bytes(range(256))
    lightness = (
        255,
        0,
        255,
        0,
        255,
        0,
        255,
        0,
        128,
        0,
        128,
        0,
        128,
        0,
        128,
        0,
    )  # of C, M, Y and K, 0 or full
    corners = b"".join(bytes([value, 128, 128]) for value in lightness)  # L*a*b*
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table + 4 * ramp + corners + 3 * ramp})


@pytest.mark.parametrize(
    ("depth", "color", "clear", "other", "seen"),
    [
        (1, 0, b"\0\0", b"\0\1", 255),
        (2, 0, b"\0\1", b"\0\2", 170),
        (4, 0, b"\0\3", b"\0\4", 68),
        (8, 0, b"\0\3", b"\0\4", 4),
        (16, 0, b"\1\2", b"\5\0", 5),
        (8, 2, b"\0\3" * 3, b"\0\4" * 3, 4),
        (16, 2, b"\1\2" * 3, b"\5\0" * 3, 5),
    ],
)
def test_the_transparent_value_of_a_png_becomes_white(
    depth: int, color: int, clear: bytes, other: bytes, seen: int
) -> None:
    """Of two pixels, the first has the value of tRNS."""
    bits = [value[at] << 8 | value[at + 1] for value in (clear, other) for at in range(0, len(clear), 2)]
    row = int("".join(f"{value:0{depth}b}" for value in bits).ljust(8, "0"), 2)
    png = chunked(
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, color, 0, 0, 0)),
        (b"tRNS", clear),
        (b"IDAT", zlib.compress(b"\0" + row.to_bytes(max(1, len(bits) * depth // 8), "big"))),
    )
    assert read_picture(png, (1, 2)).tolist() == [[[255] * 3, [seen] * 3]]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_wide_gamut_becomes_srgb(format: str) -> None:
    # Display P3's (234, 51, 35) is sRGB's pure red (255, 0, 0) but for a rounding.
    data = encode(Image.new("RGB", (90, 60), (234, 51, 35)), format, icc_profile=display_p3(), quality=98)
    assert furthest(read_picture(data, SIZE), resized(Image.new("RGB", (90, 60), (255, 0, 0)))) <= 8


def test_transparency_and_wide_gamut_combine() -> None:
    image = Image.new("RGBA", (90, 60), (234, 51, 35, 128))
    pixels = read_picture(encode(image, "PNG", icc_profile=display_p3()), SIZE)
    assert furthest(pixels, resized(Image.new("RGB", (90, 60), (255, 127, 127)))) <= 8


@pytest.mark.parametrize(
    "profile",
    [
        b"",
        b"no profile at all",
        display_p3()[:200],
        display_p3() + bytes(5_000_000),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    ],
    ids=["empty", "text", "cut", "huge", "lab"],
)
def test_a_damaged_or_foreign_profile_is_ignored(profile: bytes) -> None:
    data = encode(PICTURE, "TIFF", icc_profile=profile)
    assert furthest(read_picture(data, SIZE), resized(PICTURE)) == 0


@pytest.mark.parametrize(
    ("image", "format", "options", "seen"),
    [
        (Image.new("L", (90, 60), 55), "JPEG", {"quality": 98}, 128),
        (Image.new("L", (90, 60), 55), "PNG", {}, 128),
        (Image.new("I;16", (90, 60), 55 * 257), "PNG", {}, 128),
        (Image.new("LA", (90, 60), (55, 255)), "PNG", {}, 128),
        (Image.new("LA", (90, 60), (55, 128)), "PNG", {}, 191),
        (Image.new("LA", (90, 60), (55, 128)), "TIFF", {}, 191),
        (Image.new("L", (90, 60), 55), "PNG", {"transparency": 9}, 128),
        (Image.new("L", (90, 60), 55), "PNG", {"transparency": 55}, 255),
        # In pictures of colors it is a foreign one, also where their palette is grey.
        (Image.new("RGB", (90, 60), (55, 55, 55)), "PNG", {}, 55),
        (Image.new("L", (90, 60), 55).convert("P"), "PNG", {}, 55),
    ],
)
def test_a_profile_of_grey_is_applied_to_greys(
    image: Image.Image, format: str, options: dict[str, Any], seen: int
) -> None:
    """A linear 55 is 128 in sRGB."""
    pixels = read_picture(encode(image, format, icc_profile=linear_grey(), **options), SIZE)
    assert furthest(pixels, resized(Image.new("L", (90, 60), seen))) <= 1


def test_wide_gamut_is_applied_to_a_grey_with_transparency() -> None:
    """Its curve differs from that of sRGB in the shadows."""
    data = encode(Image.new("LA", (90, 60), (5, 255)), "PNG", icc_profile=display_p3())
    assert read_picture(data, SIZE).max() < 4


@pytest.mark.parametrize(("format", "options"), [("JPEG", {"quality": 98}), ("TIFF", {})])
def test_a_profile_of_inks_is_applied(format: str, options: dict[str, Any]) -> None:
    cyan, yellow = (Image.new("CMYK", (90, 60), inks) for inks in ((255, 0, 0, 0), (0, 0, 255, 0)))
    for image, profile, seen in (
        (cyan, grey_cyan(), (119, 119, 119)),  # L* = 50
        (yellow, grey_cyan(), (255, 255, 255)),
        (cyan, None, (0, 255, 255)),
        (cyan, display_p3(), (0, 255, 255)),  # of another color space
    ):
        pixels = read_picture(encode(image, format, icc_profile=profile, **options), SIZE)
        assert furthest(pixels, resized(Image.new("RGB", (90, 60), seen))) <= 3
