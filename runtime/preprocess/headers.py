"""Facts in the headers of JPEG and TIFF files that decide how much memory and time their decoders take."""

import re
import struct
from collections.abc import Iterator

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
MAX_TIFF_ENTRIES = 2**16


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
    is_big_tiff = 43 in data[2:4]
    count_format, entry_format = ("Q", "HHQ8s") if is_big_tiff else ("H", "HHL4s")
    order = "<" if data.startswith(b"I") else ">"
    (entries,) = struct.unpack_from(order + count_format, data, at)
    at += struct.calcsize(order + count_format)
    sides = {TILE_WIDTH: 0, TILE_LENGTH: 0}
    for _ in range(min(entries, MAX_TIFF_ENTRIES)):
        tag, kind, count, value = struct.unpack_from(order + entry_format, data, at)
        at += struct.calcsize(order + entry_format)
        if tag in sides:
            if kind not in TIFF_INTEGERS or count != 1:
                raise PictureError("is damaged (the size of a tile is not a number)")
            (side,) = struct.unpack_from(order + TIFF_INTEGERS[kind], value)
            sides[tag] = max(sides[tag], side)
    return sides[TILE_WIDTH] * sides[TILE_LENGTH]
