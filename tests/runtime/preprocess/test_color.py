"""Bit depths, transparency and ICC profiles become 8-bit sRGB."""

from __future__ import annotations

import struct

import pytest
from PIL import Image, ImageCms

from runtime.preprocess.picture import read_picture
from tests.runtime.preprocess.pictures import (
    PICTURE,
    SIZE,
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
