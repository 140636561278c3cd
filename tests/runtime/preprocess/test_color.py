"""Bit depths, transparency and ICC profiles become 8-bit sRGB."""

from __future__ import annotations

import struct
import zlib

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


# Tags of a matrix profile with the primaries of Display P3 and gamma 2.2, which ImageCms cannot make itself.
def display_p3() -> bytes:
    def s15(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + s15(*values)

    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(2.2 * 256), 0)
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 3) + b"P3\0" + bytes(79),
        b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rXYZ": xyz(0.51512, 0.2412, -0.00105),
        b"gXYZ": xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": xyz(0.1571, 0.06657, 0.78407),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
    }
    table, body, at = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", at + len(body), len(value))
        body += value
    header = bytearray(128)
    header[8:12], header[12:24], header[36:40] = b"\x02\x40\0\0", b"mntrRGB XYZ ", b"acsp"
    header[68:80] = s15(0.9642, 1, 0.8249)
    profile = bytes(header) + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(profile)) + profile[4:]


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
