"""Pictures that are made to take time or memory: small files, most of them with a small picture."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.runtime.preprocess.pictures import PICTURE, chunked, encode, scene

JPEG = encode(PICTURE, "JPEG")
HEADER = (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
DATA = (b"IDAT", zlib.compress(b"\0\0\0\0"))


def commented_ppm(size: int) -> bytes:
    """Comments before each number."""
    return b"P3\n" + b"#\n" * (size // 2) + b"1 1 255\n0 0 0\n"


def jpeg_with_segments(segment: bytes, size: int) -> bytes:
    return JPEG[:2] + segment * (size // len(segment)) + JPEG[2:]


def exif_jpeg(size: int) -> bytes:
    """Segments of 10 bytes, each of which Pillow appends to the EXIF data so far."""
    return jpeg_with_segments(b"\xff\xe1\x00\x0aExif\0\0ab", size)


def exif_jpeg_of_large_segments(size: int) -> bytes:
    """The same with few segments: of 64 kB each."""
    return jpeg_with_segments(b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527), size)


def empty_segment_jpeg(size: int) -> bytes:
    """Segments without content, each an object of Pillow's."""
    return jpeg_with_segments(b"\xff\xe0\x00\x02", size)


def tiff(entries: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    """A TIFF's directory of (tag, type, count, value or offset), and what is behind it."""
    packed = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4) + tail


TIFF_TAGS = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]


def tiff_of_strips(count: int) -> bytes:
    """A picture of 256 pixels with as many strips as the file has room for."""
    at = 8 + 2 + 12 * (len(TIFF_TAGS) + 3) + 4
    entries = [*TIFF_TAGS, (273, 4, count, at), (278, 4, 1, 1), (279, 4, count, at)]
    return tiff(entries, struct.pack("<L", at) * count)


def tiff_of_one_tag_many_times(size: int) -> bytes:
    """The same bytes, read for each of 60,000 entries."""
    return tiff([*TIFF_TAGS, *((40_000 + at % 20_000, 1, size, 0) for at in range(60_000))], bytes(size))


def exif_of_entries(count: int, kind: int = 5) -> bytes:
    """EXIF data of which each entry claims the rest of the file."""
    entries = b"".join(struct.pack("<HHLL", at, kind, 2**14, 8) for at in range(count))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + bytes(4)


def exif_png() -> bytes:
    return chunked(HEADER, (b"eXIf", exif_of_entries(65_535)), DATA)


def png_of_chunks(name: bytes, size: int) -> bytes:
    """Chunks without content; private names are kept too."""
    body = b"a\0" if name == b"tEXt" else b""
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    good = chunked(HEADER, DATA)
    at = good.index(b"IDAT") - 4
    return good[:at] + chunk * (size // len(chunk)) + good[at:]


def bmp_of_runs(size: int) -> bytes:
    """Run-length encoding that skips back and forth over a picture of 36 megapixels."""
    side = 6000
    head = b"BM" + struct.pack("<LHHL", 54 + 1024 + size, 0, 0, 54 + 1024)
    head += struct.pack("<LllHHLLllLL", 40, side, side, 1, 8, 1, size, 0, 0, 256, 0)
    return head + bytes(1024) + b"\1\0" * (size // 2)


def progressive_jpeg(side: tuple[int, int], tail: int = 0) -> bytes:
    """A header that claims a size, with next to no data."""
    data = encode(Image.new("L", (8, 8)), "JPEG", progressive=True)
    at = data.index(b"\xff\xc2")
    return data[: at + 5] + struct.pack(">HH", *side) + data[at + 9 :] + bytes(tail)


def large_png(mode: str, megapixels: int) -> bytes:
    side = int((megapixels * 1e6) ** 0.5)
    file = io.BytesIO()
    Image.new(mode, (side, side)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def noisy_webp() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (3000, 3000, 4), np.uint8)
    return encode(Image.fromarray(noise, "RGBA"), "WEBP", quality=10)


# The picture, and the megabytes of it that are made.
HOSTILE: dict[str, Callable[[], bytes]] = {
    "PPM of comments": lambda: commented_ppm(1_000_000),
    "JPEG of Exif segments": lambda: exif_jpeg(8_000_000),
    "JPEG of large Exif segments": lambda: exif_jpeg_of_large_segments(30_000_000),
    "JPEG of empty segments": lambda: empty_segment_jpeg(30_000_000),
    "TIFF of 14 million strips": lambda: tiff_of_strips(7_000_000),
    "TIFF of a million strips": lambda: tiff_of_strips(1_000_000),
    "TIFF of one tag many times": lambda: tiff_of_one_tag_many_times(1_000_000),
    "PNG of 65,535 eXIf entries": exif_png,
    "PNG of text chunks": lambda: png_of_chunks(b"tEXt", 30_000_000),
    "PNG of private chunks": lambda: png_of_chunks(b"prIv", 30_000_000),
    "BMP of runs": lambda: bmp_of_runs(30_000_000),
    "JPEG of 364 bytes and 250 megapixels": lambda: progressive_jpeg((12_500, 20_000)),
    "JPEG of 250 megapixels": lambda: progressive_jpeg((12_500, 20_000), 500_000),
    "PNG of 80 megapixels": lambda: large_png("RGBA", 80),
}
GOOD = encode(scene(640, 480), "JPEG")
