"""Pictures of every format and mode give the expected pixels, and damaged ones an error."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.common.errors import PictureError
from runtime.preprocess.limits import MAX_PIXELS
from runtime.preprocess.picture import read_picture
from tests.runtime.preprocess.pictures import (
    DEEP,
    GREY,
    PICTURE,
    SIZE,
    bomb,
    chunked,
    encode,
    furthest,
    jpeg_of,
    resized,
    scene,
    webp_of,
)


def see_through(colour: Image.Image) -> tuple[Image.Image, Image.Image]:
    """With alpha rising to the right, and what is then seen over white."""
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 200).astype(np.uint8), (150, 1)))
    clear = colour.convert("LA" if colour.mode == "L" else "RGBA")
    clear.putalpha(alpha)
    return clear, Image.composite(colour.convert("RGB"), Image.new("RGB", colour.size, "white"), alpha)


def palette_with_transparency() -> tuple[bytes, Image.Image]:
    image = PICTURE.quantize(32)
    clear = image.getpixel((0, 0))
    expected = image.convert("RGB")
    expected.paste("white", mask=image.point([255 * (i == clear) for i in range(256)], "L"))
    return encode(image, "PNG", transparency=clear), expected


@pytest.mark.parametrize(
    ("data", "expected", "tolerance"),
    [
        (encode(PICTURE, "PNG"), PICTURE, 0),
        (encode(PICTURE, "BMP"), PICTURE, 0),
        (encode(PICTURE, "TIFF", compression="tiff_lzw"), PICTURE, 0),
        (encode(PICTURE, "WEBP", lossless=True), PICTURE, 0),
        (encode(PICTURE, "JPEG", quality=98), PICTURE, 6),
        (encode(PICTURE, "JPEG", quality=98, progressive=True), PICTURE, 6),
        (encode(PICTURE, "AVIF", quality=100), PICTURE, 6),
        (encode(PICTURE, "MPO", quality=98, save_all=True, append_images=[GREY.convert("RGB")]), PICTURE, 6),
        (encode(GREY, "PNG"), GREY, 0),
        (encode(GREY, "JPEG", quality=98), GREY, 6),
        (encode(GREY.convert("1"), "PNG"), GREY.convert("1"), 0),
        (encode(PICTURE.quantize(32), "PNG"), PICTURE.quantize(32), 0),
        (*palette_with_transparency(), 0),
        (encode(see_through(PICTURE)[0], "PNG"), see_through(PICTURE)[1], 1),
        (encode(see_through(PICTURE)[0], "WEBP", lossless=True, exact=True), see_through(PICTURE)[1], 1),
        (encode(see_through(PICTURE)[0], "TIFF"), see_through(PICTURE)[1], 1),
        (encode(see_through(GREY)[0], "PNG"), see_through(GREY)[1], 1),
        (encode(DEEP, "PNG"), GREY, 1),
        (encode(DEEP, "TIFF"), GREY, 1),
        (encode(Image.fromarray(np.asarray(DEEP).astype(">u2")), "TIFF"), GREY, 1),
        (encode(Image.fromarray(np.asarray(GREY).astype(np.float32) / 255), "TIFF"), GREY, 1),
        (encode(Image.fromarray(np.asarray(GREY).astype(np.float32)), "TIFF"), GREY, 1),
        (encode(PICTURE.convert("CMYK"), "JPEG", quality=98), PICTURE, 6),
        (encode(PICTURE.convert("CMYK"), "TIFF"), PICTURE, 1),
        (encode(PICTURE, "GIF", save_all=True, append_images=[Image.new("RGB", (200, 150))]), PICTURE, 60),
        (
            encode(PICTURE, "WEBP", lossless=True, save_all=True, append_images=[GREY.convert("RGB")]),
            PICTURE,
            0,
        ),
        (encode(PICTURE, "PNG", save_all=True, append_images=[GREY.convert("RGB")]), PICTURE, 0),
        (encode(PICTURE, "TIFF", save_all=True, append_images=[GREY.convert("RGB")]), PICTURE, 0),
    ],
    ids=lambda value: value[:12].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_every_format_and_mode_gives_the_expected_pixels(
    data: bytes, expected: Image.Image, tolerance: int
) -> None:
    difference = np.abs(read_picture(data, SIZE).astype(int) - resized(expected))
    assert difference.max() <= tolerance
    assert difference.mean() <= 6  # the palette of a GIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_exif_orientation_is_applied(format: str, orientation: int) -> None:
    turned = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.rotate(180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.rotate(90, expand=True),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.rotate(-90, expand=True),
    }[orientation](PICTURE)  # as a camera held that way stores it
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98}}.get(format, {})
    data = encode(turned, format, exif=exif, **lossless)
    assert furthest(read_picture(data, SIZE), resized(PICTURE)) <= (6 if format == "JPEG" else 0)


def test_damaged_exif_is_ignored() -> None:
    data = encode(PICTURE, "JPEG", quality=98, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(range(99)))
    assert furthest(read_picture(data, SIZE), resized(PICTURE)) <= 6


def test_the_orientation_of_a_damaged_exif_block_is_applied() -> None:
    """ImageOps.exif_transpose fails on this block: a number is stored as text."""
    entries = (struct.pack("<HHLL", 0x0103, 2, 3, 0x4141), struct.pack("<HHLL", 0x0112, 3, 1, 6))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    turned = PICTURE.rotate(90, expand=True)
    data = encode(turned, "JPEG", quality=98, exif=exif)
    assert furthest(read_picture(data, SIZE), resized(PICTURE)) <= 6


def test_a_large_jpeg_gives_the_pixels_of_a_full_decode() -> None:
    image = scene(4000, 3000)
    noise = np.random.default_rng(0).normal(0, 12, (3000, 4000, 1))
    image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    data = encode(image, "JPEG", quality=90)
    difference = np.abs(read_picture(data, SIZE).astype(int) - resized(Image.open(io.BytesIO(data))))
    assert difference.max() <= 3 and difference.mean() < 0.5


ONE_PIXEL = (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0\0\0\0"))
BLOWN_UP = zlib.compress(bytes(300_000_000))  # 300 kB of file

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"<html>not found</html>", "supported format"),
    "postscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "is a PostScript or EPS file, and only JPEG",
    ),
    "ppm": (encode(PICTURE, "PPM"), "is a PPM, PGM, PBM or PAM picture, and only JPEG"),
    "jpeg 2000": (encode(PICTURE, "JPEG2000"), "is a JPEG 2000 picture, and only JPEG"),
    "truncated jpeg": (encode(PICTURE, "JPEG")[:-900], "is damaged"),
    "truncated png": (encode(PICTURE, "PNG")[:-900], "is damaged"),
    "truncated webp": (encode(PICTURE, "WEBP")[:-300], "is damaged"),
    "truncated tiff": (encode(PICTURE, "TIFF")[:-900], "is damaged"),
    "only a jpeg's first bytes": (b"\xff\xd8\xff\xe0", "is damaged"),
    "png bomb": (bomb(60_000, 60_000), "3,600 megapixels"),
    "png just too large": (bomb(MAX_PIXELS // 9_000 + 1, 9_000), "may have 89"),
    "png between Pillow's warning and its error": (bomb(12_000, 12_000), "144 megapixels"),
    "webp bomb": (webp_of(16_383, 16_383), r"has 268 megapixels \(16383 x 16383\), and a WEBP may have 89"),
    "webp without a picture": (b"RIFF\x20\0\0\0WEBPICCP" + bytes(24), "is damaged"),
    "jpeg bomb": (jpeg_of(65_500, 65_500), "may have 250"),
    "gif bomb": (b"GIF89a\xff\xff\xff\xff" + encode(PICTURE, "GIF")[10:], "megapixels"),
    "strip": (encode(Image.new("L", (1, 60_000)), "PNG"), "too narrow"),
    "profile bomb": (
        chunked(ONE_PIXEL[0], (b"iCCP", b"x\0\0" + BLOWN_UP), ONE_PIXEL[1]),
        "has a color profile or",
    ),
    "text bomb": (
        chunked(ONE_PIXEL[0], (b"zTXt", b"x\0\0" + BLOWN_UP), ONE_PIXEL[1]),
        "has a color profile or",
    ),
}


@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD)
@pytest.mark.filterwarnings("error")
def test_an_unreadable_picture_gives_its_reason_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError, match=reason) as caught:
        read_picture(data)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux reports it")
def test_an_error_does_not_keep_the_pixels_in_memory(tmp_path: Path) -> None:
    """Of a picture cut off, the pixels would stay in memory for as long as the error does."""
    data = encode(Image.new("RGB", (4000, 4000)), "PNG")
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    code = (
        "import re, sys\n"
        "from runtime.common.errors import PictureError\n"
        "from runtime.preprocess.picture import read_picture\n"
        "now = lambda: int(re.search(r'VmRSS:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = now()\n"
        "try: read_picture(sys.argv[1])\n"
        "except PictureError as error: kept = error\n"
        "print(now() - before)"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "cut")]
    assert int(subprocess.run(run, capture_output=True, check=True, text=True).stdout) < 20_000


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_give_pixels_or_a_picture_error(format: str) -> None:
    random = np.random.default_rng(len(format))
    good = np.frombuffer(encode(scene(40, 30), format), np.uint8)
    for _ in range(200):
        data = good.copy()
        at = random.integers(0, len(data), random.integers(1, 6))
        data[at] = random.integers(0, 256, len(at))
        try:
            assert read_picture(data.tobytes(), SIZE).shape == (*SIZE, 3)
        except PictureError as error:
            assert "\n" not in str(error)
