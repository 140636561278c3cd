"""Bounds on pixels, memory and decoding time, checked before a picture is decoded."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock

from PIL import Image

from runtime.common.errors import PictureError
from runtime.preprocess.headers import jpeg_keeps_coefficients, jpeg_scans, tiff_tile_pixels

MAX_JPEG_PIXELS = 250_000_000  # decoded at an eighth of the width and height, see picture.DRAFT_SCALE
MAX_PIXELS = 89_000_000  # just under Pillow's own warning of a decompression bomb
MAX_ASPECT_RATIO = 100
# A JPEG is decoded once per scan, and 20 kB can hold thousands of empty scans. The limit is on pixels times
# scans: 16 scans of the largest picture, or 330 of a photo of 12 megapixels.
MAX_SCANNED_PIXELS = 16 * MAX_JPEG_PIXELS

# The most bytes per pixel between file and model, measured, by Pillow's format names. A TIFF's 16 include a
# tile beside the picture.
BYTES_PER_PIXEL = {"JPEG": 8, "WEBP": 22, "JPEG2000": 25, "AVIF": 18}
BYTES_PER_PIXEL_OF_OTHERS = 16


class DecodeMemory:
    """The memory that this process may use to decode: its threads share it, first come, first served."""

    def __init__(self) -> None:
        self._used = 0  # bytes
        self._queue = Lock()  # held by the thread that waits: small pictures cannot overtake a large one
        self._released = Condition()

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Waits until `count` bytes fit into half of the machine's memory, and holds them in the block.

        A picture that is alone always gets its memory.
        """
        if not count:
            yield
            return
        with self._queue, self._released:
            self._released.wait_for(lambda: not self._used or self._used + count <= total_memory() // 2)
            self._used += count
        try:
            yield
        finally:
            with self._released:
                self._used -= count
                self._released.notify()


DECODE_MEMORY = DecodeMemory()


def check_limits(image: Image.Image, full_size: tuple[int, int], data: bytes) -> int:
    """Returns the bytes that decoding will take, from the header. Raises PictureError above a limit.

    `full_size` is the picture's (width, height) before a JPEG's draft mode reduced it; `data` is the file.
    """
    width, height = full_size
    if not (pixels := width * height):
        raise PictureError(f"is {width} x {height} pixels: an empty picture")
    bytes_per_pixel = BYTES_PER_PIXEL.get(image.format or "", BYTES_PER_PIXEL_OF_OTHERS)
    decoded = _decoded_pixels(image, pixels, data)
    format_limit = MAX_JPEG_PIXELS if image.format == "JPEG" else MAX_PIXELS
    # A board with 512 MB takes 13 megapixels of PNG, and 26 of progressive JPEG.
    memory_limit = min(format_limit, total_memory() // 2 // bytes_per_pixel)
    if pixels > format_limit or decoded > memory_limit:
        limit = format_limit if pixels > format_limit else memory_limit
        tile = "in a tile " if decoded > pixels else ""
        raise PictureError(
            f"has {max(pixels, decoded) / 1e6:,.0f} megapixels {tile}({width} x {height}), "
            f"and a {image.format} may have {limit // 10**6}"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise PictureError(f"is {width} x {height} pixels: too narrow to show anything when resized")
    if image.format == "JPEG":
        _check_scans(data, MAX_SCANNED_PIXELS // pixels)
    return decoded * bytes_per_pixel if image.format else 0  # a frame of a camera is decoded already


def total_memory() -> int:
    """Returns the bytes of this machine's memory; 1 TiB where the system does not report it (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**40


def _decoded_pixels(image: Image.Image, pixels: int, data: bytes) -> int:
    """Returns how many pixels the decoder holds at once."""
    if image.format == "JPEG" and not jpeg_keeps_coefficients(data):
        return image.width * image.height
    if image.format == "TIFF":
        return max(pixels, tiff_tile_pixels(data, image.tag_v2.offset))  # type: ignore[attr-defined]
    return pixels


def _check_scans(data: bytes, limit: int) -> None:
    # A quick upper bound first: the same two bytes may stand in a video behind the photo.
    if data.count(b"\xff\xda") > limit and jpeg_scans(data) > limit:
        raise PictureError(f"has over {limit} scans, and would take minutes to decode: save it again")
