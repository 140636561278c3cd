"""Pictures of every kind that phones and cameras make, against a full decode, and what is no picture."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from runtime.common.errors import PictureError
from runtime.preprocess import decode, limits
from runtime.preprocess.limits import MAX_PIXELS
from runtime.preprocess.picture import read_picture
from tests.helpers import wait_for

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
        (encode(PICTURE, "PPM"), PICTURE, 0),
        (encode(PICTURE, "WEBP", lossless=True), PICTURE, 0),
        (encode(PICTURE, "JPEG2000"), PICTURE, 1),
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
        (b"P5 200 150 65535\n" + np.asarray(DEEP).astype(">u2").tobytes(), GREY, 1),
        (encode(Image.fromarray(np.asarray(GREY).astype(np.int32) << 22), "TIFF"), GREY, 2),
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
def test_kind(data: bytes, expected: Image.Image, tolerance: int) -> None:
    difference = np.abs(read_picture(data, SIZE).astype(int) - resized(expected))
    assert difference.max() <= tolerance
    assert difference.mean() <= 6  # the palette of a GIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(format: str, orientation: int) -> None:
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


def test_see_through_and_wide_gamut() -> None:
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
def test_a_bad_profile_is_ignored(profile: bytes) -> None:
    data = encode(PICTURE, "TIFF", icc_profile=profile)
    assert furthest(read_picture(data, SIZE), resized(PICTURE)) == 0


def test_heic() -> None:
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(PICTURE).save(file, quality=95)
    assert furthest(read_picture(file.getvalue(), SIZE), resized(PICTURE)) <= 12


def test_heic_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(PictureError, match=r"pip install 'vgg-edge\[heic\]'"):
        read_picture(b"\0\0\0\x18ftypheic" + bytes(100))


def test_a_large_jpeg_is_as_a_full_decode_would_be() -> None:
    image = scene(4000, 3000)
    noise = np.random.default_rng(0).normal(0, 12, (3000, 4000, 1))
    image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    data = encode(image, "JPEG", quality=90)
    difference = np.abs(read_picture(data, SIZE).astype(int) - resized(Image.open(io.BytesIO(data))))
    assert difference.max() <= 3 and difference.mean() < 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux tells it")
def test_250_megapixels_of_jpeg_in_little_memory(tmp_path: Path) -> None:
    # One grey block repeated: the file is small, the decoder's work is not.
    path = tmp_path / "large.jpg"
    Image.new("L", (20_000, 12_500), 90).save(path, quality=50)
    code = (
        "import re, sys; from runtime.preprocess.picture import read_picture; "
        "pixels = read_picture(sys.argv[1]); "
        "print(pixels.min(), pixels.max()); "
        "print(*re.findall(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read()))"
    )
    run = [sys.executable, "-c", code, str(path)]
    low, high, kilobytes = map(
        int, subprocess.run(run, capture_output=True, check=True, text=True).stdout.split()
    )
    assert low == high == 90
    assert kilobytes < 150_000


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


ONE_PIXEL = (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0\0\0\0"))
BLOWN_UP = zlib.compress(bytes(300_000_000))  # 300 kB of file

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"<html>not found</html>", "supported format"),
    "postscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "supported format",
    ),
    "truncated jpeg": (encode(PICTURE, "JPEG")[:-900], "is damaged"),
    "truncated png": (encode(PICTURE, "PNG")[:-900], "is damaged"),
    "truncated webp": (encode(PICTURE, "WEBP")[:-300], "is damaged"),
    "truncated tiff": (encode(PICTURE, "TIFF")[:-900], "is damaged"),
    "only a jpeg's first bytes": (b"\xff\xd8\xff\xe0", "is damaged"),
    "png bomb": (bomb(60_000, 60_000), "3,600 megapixels"),
    "png just too large": (bomb(MAX_PIXELS // 9_000 + 1, 9_000), "may have 89"),
    "png between Pillow's warning and its error": (bomb(12_000, 12_000), "144 megapixels"),
    "jpeg bomb": (jpeg_of(65_500, 65_500), "may have 250"),
    "gif bomb": (b"GIF89a\xff\xff\xff\xff" + encode(PICTURE, "GIF")[10:], "megapixels"),
    "strip": (encode(Image.new("L", (1, 60_000)), "PNG"), "too narrow"),
    "profile bomb": (chunked(ONE_PIXEL[0], (b"iCCP", b"x\0\0" + BLOWN_UP), ONE_PIXEL[1]), "is damaged"),
    "text bomb": (chunked(ONE_PIXEL[0], (b"zTXt", b"x\0\0" + BLOWN_UP), ONE_PIXEL[1]), "is damaged"),
}


@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD)
@pytest.mark.filterwarnings("error")
def test_what_cannot_be_read_says_why_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError, match=reason) as caught:
        read_picture(data)
    assert "\n" not in str(caught.value)


def scans(count: int, side: int) -> bytes:
    """A progressive JPEG whose header claims a size, and whose last scan is there again and again."""
    data = encode(Image.new("L", (16, 16), 128), "JPEG", progressive=True)
    at, last = data.index(b"\xff\xc2"), data.rindex(b"\xff\xda")
    data = data[: at + 5] + struct.pack(">HH", side, side) + data[at + 9 :]
    return data[:-2] + (count - data.count(b"\xff\xda")) * data[last:-2] + data[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    """11 kB would take a core for minutes, at 15,000 pixels a side for an hour."""
    with pytest.raises(PictureError, match="over 62 scans, and would take minutes to decode"):
        read_picture(scans(1000, 8000))
    assert read_picture(scans(50, 200)).shape == (224, 224, 3)
    # A film behind the photo may hold the same two bytes.
    photo = encode(Image.new("L", (8000, 8000), 90), "JPEG")
    assert (read_picture(photo + 100 * b"\xff\xda\x00") == read_picture(photo)).all()


def test_the_machines_memory_bounds_what_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board with 512 MB has about 430 for its programs: half of that is what a picture may take."""
    monkeypatch.setattr(limits, "total_memory", lambda: 430 * 10**6)
    with pytest.raises(PictureError, match=r"has 20 megapixels .* and a PNG may have 13"):
        read_picture(bomb(5000, 4000))
    with pytest.raises(PictureError, match="and a JPEG may have 26"):
        read_picture(scans(10, 6000))
    assert (
        read_picture(encode(Image.new("L", (6000, 6000), 90), "JPEG")).mean() == 90
    )  # reduced as it is read


def in_scans(side: int, *scans: tuple[int, ...]) -> bytes:
    """A grey baseline JPEG of three components, each scan holding those given; a side is a multiple of 8."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    shortest = bytes([1, *bytes(15), 0])  # of Huffman codes, one: the bit 0, no difference, end of block
    data = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64)
    data += segment(0xC0, struct.pack(">BHHB", 8, side, side, 3) + b"\1\x11\0\2\x11\0\3\x11\0")
    data += segment(0xC4, b"\0" + shortest) + segment(0xC4, b"\x10" + shortest)
    for scan in scans:
        head = bytes([len(scan), *(byte for component in scan for byte in (component, 0)), 0, 63, 0])
        data += segment(0xDA, head) + bytes((side // 8) ** 2 * len(scan) // 4 + 1)
    return data + b"\xff\xd9"


@pytest.mark.parametrize("scans", [((1,), (2,), (3,)), ((1, 2), (3,))])
def test_a_jpeg_kept_whole_for_its_scans_is_bounded_as_a_progressive_one(
    scans: tuple[tuple[int, ...], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """160 megapixels of it took 925 MB, from a file of 2 MB."""
    monkeypatch.setattr(limits, "total_memory", lambda: 430 * 10**6)
    with pytest.raises(PictureError, match=r"has 36 megapixels .* and a JPEG may have 26"):
        read_picture(in_scans(6000, *scans))
    assert read_picture(in_scans(800, *scans)).mean() == 128
    assert read_picture(in_scans(6000, (1, 2, 3))).mean() == 128  # reduced as it is read


def test_a_jpeg_too_narrow_to_be_reduced_is_bounded_by_the_machines_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "total_memory", lambda: 430 * 10**6)
    with pytest.raises(PictureError, match=r"has 84 megapixels .* and a JPEG may have 26"):
        read_picture(jpeg_of(1300, 65_000))


def tiled(*sides: tuple[int, int, int], big: bool = False) -> bytes:
    """The header of a TIFF of 16 x 16 pixels, and tags of its tiles: number, type and value."""
    head = b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) if big else b"II*\0" + struct.pack("<L", 8)
    count, entry, size = ("<Q", "<HHQ", 8) if big else ("<H", "<HHL", 4)
    tags = [(256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1), *sides]
    tags += [(324, 4, 8), (325, 4, 8)]
    entries = (struct.pack(entry, tag, kind, 1) + side.to_bytes(size, "little") for tag, kind, side in tags)
    return head + struct.pack(count, len(tags)) + b"".join(entries) + bytes(size)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            tiled((322, 4, 8192), (323, 4, 8192)),
            "has 67 megapixels in a tile .16 x 16., and a TIFF may have 13",
        ),
        (tiled((322, 4, 8192), (323, 4, 8192), big=True), "has 67 megapixels in a tile"),
        (tiled((322, 3, 8192), (322, 3, 16), (323, 3, 8192)), "has 67 megapixels in a tile"),
        (tiled((322, 3, 16), (322, 3, 8192), (323, 3, 8192)), "has 67 megapixels in a tile"),
        (tiled((322, 9, 8192), (322, 3, 16), (323, 3, 8192)), "size of a tile is not a number"),
        (tiled((322, 3, 16), (323, 3, 16)), "decoder error"),  # of these tiles nothing is in the file
    ],
)
def test_a_tiffs_tiles_are_bounded_as_pictures_are(
    data: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """196 kB took 192 MB, for a picture of 16 x 16 pixels."""
    monkeypatch.setattr(limits, "total_memory", lambda: 430 * 10**6)
    with pytest.raises(PictureError, match=reason):
        read_picture(data)


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux tells it")
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGBA", {}),
        ("PNG", "I;16", {}),
        ("TIFF", "F", {}),
        ("WEBP", "RGBA", {"lossless": True, "method": 0}),
        ("JPEG2000", "RGBA", {}),
        ("AVIF", "RGBA", {"speed": 10}),
        ("JPEG", "CMYK", {"progressive": True}),
    ],
)
def test_no_kind_takes_more_memory_a_pixel_than_it_is_reckoned_with(
    kind: str, mode: str, options: dict[str, Any], tmp_path: Path
) -> None:
    side = 2500
    Image.new(mode, (side, side)).save(tmp_path / "large", kind, **options)
    Image.new(mode, (8, 8)).save(tmp_path / "small", kind, **options)
    code = (
        "import re, sys; from runtime.preprocess.picture import read_picture; "
        "peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]); "
        "read_picture(sys.argv[1]); data = open(sys.argv[2], 'rb').read(); "
        "before = peak(); read_picture(data); print(peak() - before)"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "small"), str(tmp_path / "large")]
    kilobytes = int(subprocess.run(run, capture_output=True, check=True, text=True).stdout)
    reckoned = limits.BYTES_PER_PIXEL.get(kind, limits.BYTES_PER_PIXEL_OF_OTHERS)
    assert reckoned / 3 < 1024 * kilobytes / side**2 < reckoned + 1


def test_a_large_picture_is_not_overtaken_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is being decoded, a larger one waits for it, and what comes then waits behind that."""
    small, large = encode(PICTURE, "PNG"), encode(PICTURE.resize((300, 200)), "PNG")
    monkeypatch.setattr(limits, "total_memory", lambda: 2 * 16 * 300 * 200)
    room, order = limits.DECODE_MEMORY, []

    def read(data: bytes) -> None:
        read_picture(data)
        order.append(data)

    with ThreadPoolExecutor() as pool, room.reserve(16 * 100 * 100):
        pool.submit(read, large)
        wait_for(room._queue.locked)
        pool.submit(read, small)
        time.sleep(0.1)
        assert order == []
    assert order == [large, small] and not room._used


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux tells it")
def test_an_error_does_not_keep_the_picture(tmp_path: Path) -> None:
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


def test_paths_are_named(tmp_path: Path) -> None:
    path = tmp_path / "фото 🌷.jpg"
    with pytest.raises(PictureError, match=r"фото 🌷\.jpg: no such file"):
        read_picture(path)
    with pytest.raises(PictureError, match="is a folder"):
        read_picture(str(tmp_path))
    with pytest.raises(PictureError, match="null"):
        read_picture("a\0b")
    path.write_bytes(encode(PICTURE, "PNG"))
    assert furthest(read_picture(path, SIZE), resized(PICTURE)) == 0
    with path.open("rb") as file:
        assert furthest(read_picture(file, SIZE), resized(PICTURE)) == 0


@pytest.fixture
def nobody() -> Iterator[None]:
    if os.name != "posix" or os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_no_permission(tmp_path: Path, nobody: None, request: pytest.FixtureRequest) -> None:
    path = Path("/proc/1/environ") if os.geteuid() == 65534 else tmp_path / "secret.jpg"
    if os.geteuid() != 65534:
        path.write_bytes(encode(PICTURE, "PNG"))
        path.chmod(0)
    with pytest.raises(PictureError, match="permission denied"):
        read_picture(path)


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


def test_pillows_settings_are_left_alone() -> None:
    before = Image.MAX_IMAGE_PIXELS
    read_picture(encode(PICTURE, "JPEG"))
    assert before == Image.MAX_IMAGE_PIXELS
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(bomb(20_000, 20_000)))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a file without an end")
def test_a_file_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_FILE_BYTES", 50_000_000)
    with Path("/dev/zero").open("rb") as file, pytest.raises(PictureError, match="is over 47 MiB"):
        read_picture(file)


@pytest.mark.skipif(os.name != "posix", reason="files of POSIX")
def test_pipes_and_devices_are_no_pictures(tmp_path: Path) -> None:
    """The pipe would be waited for without an end."""
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("/dev/zero")
    for path in (tmp_path / "a.jpg", tmp_path / "b.jpg"):
        for read in (read_picture, decode.read_bytes):
            with pytest.raises(PictureError, match=rf"{path.name}: is a pipe or a device"):
                read(path)


@pytest.mark.skipif(os.name != "posix", reason="files of POSIX")
@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_what_a_process_was_handed_is_read_by_its_path(path: str) -> None:
    code = (
        "import sys; from runtime.preprocess.picture import read_picture; "
        "print(read_picture(sys.argv[1]).shape)"
    )
    if not Path(path).exists():
        pytest.skip("not on this system")
    run = [sys.executable, "-c", code, path]
    done = subprocess.run(run, input=encode(PICTURE, "PNG"), capture_output=True, check=True)
    assert done.stdout.split() == [b"(224,", b"224,", b"3)"]
