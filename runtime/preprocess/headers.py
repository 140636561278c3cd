"""Facts in the headers of JPEG, PNG, TIFF and WebP files that bound the memory and time of decoding."""

import re
import struct
from collections.abc import Iterator
from itertools import islice, takewhile
from typing import Any

from runtime.common.errors import PictureError

# JPEG markers, ITU-T T.81, annex B.
SCAN = 0xDA
END_OF_IMAGE = 0xD9
PROGRESSIVE_FRAMES = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} - PROGRESSIVE_FRAMES
# Without an escaped 0xFF in the compressed data, and without restarts, which have no length.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")

TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
TIFF_INTEGERS = {3: "H", 4: "L"}  # the types that TIFF 6.0 allows for a tile's sides
TIFF_BYTES = (1, 2, 6, 7)  # types of one byte: profiles and texts may be long
MAX_TIFF_ENTRIES = 2**16

# Pillow keeps an object for each; with Exif segments its time grows with the square of their number. Large
# color profiles have 64 segments, the largest PNG 50,000 chunks, and a TIFF 300,000 strips.
MAX_JPEG_SEGMENTS = 4096
MAX_PNG_CHUNKS = 2**16
MAX_TIFF_VALUES = 2**20


def check_metadata(format: str, data: bytes) -> None:
    """Raises PictureError for metadata that take minutes or gigabytes to read."""
    if format == "JPEG":
        before_scan = takewhile(lambda segment: segment[0] != SCAN, _jpeg_segments(data))
        if next(islice(before_scan, MAX_JPEG_SEGMENTS, None), None):
            raise _too_much("segments", MAX_JPEG_SEGMENTS)
    elif format == "PNG":
        if next(islice(_png_chunks(data), MAX_PNG_CHUNKS, None), None):
            raise _too_much("chunks", MAX_PNG_CHUNKS)
    elif format == "TIFF":
        at = struct.unpack_from(
            _order(data) + ("Q" if _is_big_tiff(data) else "L"), data, 8 if _is_big_tiff(data) else 4
        )[0]
        if any(
            kind not in TIFF_BYTES and count > MAX_TIFF_VALUES
            for _, kind, count, _ in _tiff_entries(data, at)
        ):
            raise _too_much("values in a tag", MAX_TIFF_VALUES)


def _too_much(items: str, limit: int) -> PictureError:
    return PictureError(f"has over {limit:,} {items}, and would take minutes to read: save it again")


def jpeg_scans(data: bytes) -> int:
    """Returns how many scans a JPEG has."""
    return sum(marker == SCAN for marker, _ in _jpeg_segments(data))


def jpeg_keeps_coefficients(data: bytes) -> bool:
    """Whether libjpeg keeps all coefficients of a JPEG in memory, at full size.

    It does for progressive files and for files whose first scan does not hold all components.
    """
    components = 0
    for marker, at in _jpeg_segments(data):
        if marker in PROGRESSIVE_FRAMES:
            return True
        if marker in FRAMES:
            components = data[at + 5]
        elif marker == SCAN:
            return data[at] < components
    return False


def webp_size(data: bytes) -> tuple[int, int]:
    """Returns width and height of a WebP, or of its canvas. Raises PictureError if its header holds none."""
    head = data[:30].ljust(30, b"\0")
    kind, width, height = head[12:16], 0, 0
    if kind == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    if not width * height:
        raise PictureError("is damaged (its header holds no size)")
    return width, height


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields each marker of a JPEG, and the offset behind its segment's length."""
    at = 2
    while (marker := _MARKER.search(data, at)) and marker[1][0] != END_OF_IMAGE:
        yield marker[1][0], marker.end() + 2
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")


def tiff_tile_pixels(data: bytes, at: int) -> int:
    """Returns the pixels of a TIFF's tile, 0 without tiles. `at` is the offset of the picture's directory.

    libtiff decodes a whole tile, which may be far larger than the picture. The directory is read here as
    libtiff reads it: Pillow may take another value of a repeated tag, or of a tag with an odd type. Raises
    PictureError when a side is not one number.
    """
    sides = {TILE_WIDTH: 0, TILE_LENGTH: 0}
    for tag, kind, count, value in _tiff_entries(data, at):
        if tag in sides:
            if kind not in TIFF_INTEGERS or count != 1:
                raise PictureError("is damaged (the size of a tile is not a number)")
            (side,) = struct.unpack_from(_order(data) + TIFF_INTEGERS[kind], value)
            sides[tag] = max(sides[tag], side)
    return sides[TILE_WIDTH] * sides[TILE_LENGTH]


def _tiff_entries(data: bytes, at: int) -> Iterator[tuple[Any, ...]]:
    """Yields tag, type, count and value of each entry of a TIFF's directory at the offset `at`."""
    count_format, entry_format = ("Q", "HHQ8s") if _is_big_tiff(data) else ("H", "HHL4s")
    (entries,) = struct.unpack_from(_order(data) + count_format, data, at)
    at += struct.calcsize(_order(data) + count_format)
    for number in range(min(entries, MAX_TIFF_ENTRIES)):
        yield struct.unpack_from(
            _order(data) + entry_format, data, at + number * struct.calcsize(_order(data) + entry_format)
        )


def _is_big_tiff(data: bytes) -> bool:
    return 43 in data[2:4]


def _order(data: bytes) -> str:
    return "<" if data.startswith(b"I") else ">"


def _png_chunks(data: bytes) -> Iterator[int]:
    """Yields the offset of each chunk of a PNG."""
    at = 8
    while at + 12 <= len(data):
        yield at
        at += 12 + int.from_bytes(data[at : at + 4], "big")
