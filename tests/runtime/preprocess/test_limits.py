"""Bounds on pixels, memory and decoding time."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.common.errors import PictureError
from runtime.preprocess import limits, memory
from runtime.preprocess.headers import webp_size
from runtime.preprocess.picture import read_picture
from tests.helpers import wait_for
from tests.runtime.preprocess.hostile import (
    empty_segment_jpeg,
    exif_jpeg,
    png_of_chunks,
    progressive_jpeg,
    tiff_of_strips,
)
from tests.runtime.preprocess.pictures import (
    GREY,
    PICTURE,
    bomb,
    encode,
    jpeg_of,
)


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux reports it")
def test_a_jpeg_of_250_megapixels_decodes_in_150_mb(tmp_path: Path) -> None:
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


def scans(count: int, side: int) -> bytes:
    """A progressive JPEG whose header claims a size, and whose last scan is there again and again."""
    data = encode(Image.new("L", (16, 16), 128), "JPEG", progressive=True)
    at, last = data.index(b"\xff\xc2"), data.rindex(b"\xff\xda")
    data = data[: at + 5] + struct.pack(">HH", side, side) + data[at + 9 :]
    return data[:-2] + (count - data.count(b"\xff\xda")) * data[last:-2] + data[-2:]


def test_a_jpeg_with_thousands_of_scans_is_rejected() -> None:
    """11 kB would take a core for minutes, at 15,000 pixels a side for an hour."""
    with pytest.raises(PictureError, match="over 62 scans, and would take minutes to decode"):
        read_picture(scans(1000, 8000))
    assert read_picture(scans(50, 200)).shape == (224, 224, 3)
    # A film behind the photo may hold the same two bytes.
    photo = encode(Image.new("L", (8000, 8000), 90), "JPEG")
    assert (read_picture(photo + 100 * b"\xff\xda\x00") == read_picture(photo)).all()


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 5, 3)])
def test_an_empty_frame_is_rejected(shape: tuple[int, int, int]) -> None:
    with pytest.raises(PictureError, match="empty"):
        read_picture(np.zeros(shape, np.uint8))


def test_a_large_frame_is_rejected_by_this_name() -> None:
    frame = np.broadcast_to(np.uint8(0), (10_000, 9_000))
    with pytest.raises(PictureError, match="and a frame may have 89"):
        read_picture(frame)


def test_the_machines_memory_limits_the_megapixels(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_jpeg_with_separate_scans_has_the_limit_of_a_progressive_one(
    scans: tuple[tuple[int, ...], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """160 megapixels of it took 925 MB, from a file of 2 MB."""
    monkeypatch.setattr(limits, "total_memory", lambda: 430 * 10**6)
    with pytest.raises(PictureError, match=r"has 36 megapixels .* and a JPEG may have 26"):
        read_picture(in_scans(6000, *scans))
    assert read_picture(in_scans(800, *scans)).mean() == 128
    assert read_picture(in_scans(6000, (1, 2, 3))).mean() == 128  # reduced as it is read


def test_a_jpeg_too_narrow_for_a_draft_has_the_limit_of_the_memory(
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
def test_the_tiles_of_a_tiff_have_the_limit_of_a_picture(
    data: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """196 kB took 192 MB, for a picture of 16 x 16 pixels."""
    monkeypatch.setattr(limits, "total_memory", lambda: 430 * 10**6)
    with pytest.raises(PictureError, match=reason):
        read_picture(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (exif_jpeg(50_000), "over 4,096 segments, and would take minutes to read"),
        (empty_segment_jpeg(20_000), "over 4,096 segments"),
        (png_of_chunks(b"tEXt", 1_000_000), "over 65,536 chunks"),
        (png_of_chunks(b"prIv", 900_000), "over 65,536 chunks"),
        (tiff_of_strips(2**20 + 1), "over 1,048,576 values in a tag"),
        (progressive_jpeg((12_500, 20_000)), r"280 bytes cannot hold 20000 x 12500 pixels"),
    ],
    ids=["Exif", "empty", "text", "private", "strips", "progressive"],
)
def test_metadata_that_take_minutes_to_read_are_refused(data: bytes, reason: str) -> None:
    started = time.thread_time()
    with pytest.raises(PictureError, match=reason):
        read_picture(data)
    assert time.thread_time() - started < 1


@pytest.mark.parametrize(
    "options",
    [{}, {"lossless": True}, {"exif": Image.Exif()}, {"save_all": True, "append_images": [GREY]}],
    ids=["lossy", "lossless", "metadata", "animated"],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_size_of_a_webp_is_read_from_its_header(mode: str, options: dict[str, Any]) -> None:
    assert webp_size(encode(PICTURE.convert(mode), "WEBP", **options)) == PICTURE.size


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux reports it")
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGBA", {}),
        ("PNG", "I;16", {}),
        ("TIFF", "F", {}),
        ("WEBP", "RGBA", {"lossless": True, "method": 0}),
        ("HEIF", "RGBA", {}),
        ("AVIF", "RGBA", {"speed": 10}),
        ("JPEG", "CMYK", {"progressive": True}),
    ],
)
def test_no_format_takes_more_memory_per_pixel_than_estimated(
    kind: str, mode: str, options: dict[str, Any], tmp_path: Path
) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    side = 3000
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
    estimate = limits.BYTES_PER_PIXEL.get(kind, limits.BYTES_PER_PIXEL_OF_OTHERS)
    assert estimate / 3 < 1024 * kilobytes / side**2 < estimate + 1


def test_pictures_do_not_overtake_a_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is being decoded, a larger one waits for it, and what comes then waits behind that.

    Those below a 64th of the memory have their own share, and leave the larger one's to it.
    """
    small, large = (encode(PICTURE.resize(size), "PNG") for size in ((100, 100), (300, 200)))
    monkeypatch.setattr(memory, "total_memory", lambda: 2 * 16 * 300 * 200)
    room, order = memory.DECODE_MEMORY, []
    share = room._large

    def read(data: bytes) -> None:
        read_picture(data)
        order.append(data)

    with ThreadPoolExecutor() as pool, room.reserve(16 * 100 * 100):
        pool.submit(read, large)
        wait_for(share._queue.locked)
        pool.submit(read, small)
        time.sleep(0.1)
        assert order == []
    assert order == [large, small] and not share._used
