"""Bounds on pixels, memory and decoding time, checked before a picture is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.common.errors import PictureError
from runtime.preprocess.headers import jpeg_keeps_coefficients, jpeg_scans, tiff_tile_pixels, webp_size
from runtime.preprocess.memory import total_memory

if TYPE_CHECKING:
    from PIL import Image

MAX_JPEG_PIXELS = 250_000_000  # decoded at an eighth of the width and height, see render.DRAFT_SCALE
MAX_PIXELS = 89_000_000  # just under Pillow's own warning of a decompression bomb
MAX_ASPECT_RATIO = 100
# A JPEG is decoded once per scan, and 20 kB can hold thousands of empty scans. The limit is on pixels times
# scans: 16 scans of the largest picture, or 330 of a photo of 12 megapixels.
MAX_SCANNED_PIXELS = 16 * MAX_JPEG_PIXELS
# Huffman codes take at least a bit for each block of 8 x 8 pixels: 364 bytes cannot hold 250 megapixels.
MAX_JPEG_PIXELS_PER_BYTE = 512

# The most bytes per pixel between file and model, measured, by Pillow's format names. A TIFF's 16 include a
# tile beside the picture.
BYTES_PER_PIXEL = {"JPEG": 8, "WEBP": 22, "AVIF": 18}
BYTES_PER_PIXEL_OF_OTHERS = 16


@dataclass(frozen=True)
class DecodeCost:
    """The memory and the pixels that decoding needs, estimated from the header."""

    bytes: int  # of memory
    pixels: int


def check_limits(image: Image.Image, full_size: tuple[int, int], data: bytes) -> DecodeCost:
    """Returns the memory and the pixels that decoding needs. Raises PictureError above a limit.

    `full_size` is the picture's (width, height) before a JPEG's draft mode reduced it; `data` is the file.
    """
    width, height = full_size
    pixels = check_shape(width, height)
    cost = _cost(image.format, full_size, _decoded_pixels(image, pixels, data))
    if image.format == "JPEG":
        _check_scans(data, MAX_SCANNED_PIXELS // pixels)
        if pixels > MAX_JPEG_PIXELS_PER_BYTE * len(data):
            raise PictureError(f"is damaged ({len(data):,} bytes cannot hold {width} x {height} pixels)")
    return cost


def check_webp_limits(data: bytes) -> DecodeCost:
    """As check_limits, before the file is opened: Pillow's plugin allocates the pixels when it does that."""
    width, height = webp_size(data)
    return _cost("WEBP", (width, height), width * height)


def _cost(format: str | None, size: tuple[int, int], decoded: int) -> DecodeCost:
    """Returns the cost of a picture of `size` (width, height) whose decoder holds `decoded` pixels."""
    width, height = size
    pixels = width * height
    bytes_per_pixel = BYTES_PER_PIXEL.get(format or "", BYTES_PER_PIXEL_OF_OTHERS)
    format_limit = MAX_JPEG_PIXELS if format == "JPEG" else MAX_PIXELS
    # A board with 512 MB takes 13 megapixels of PNG, and 26 of progressive JPEG.
    memory_limit = min(format_limit, total_memory() // 2 // bytes_per_pixel)
    if pixels > format_limit or decoded > memory_limit:
        limit = format_limit if pixels > format_limit else memory_limit
        tile = "in a tile " if decoded > pixels else ""
        raise PictureError(
            f"has {max(pixels, decoded) / 1e6:,.0f} megapixels {tile}({width} x {height}), "
            f"and a {format or 'frame'} may have {limit // 10**6}: reduce its size"
        )
    check_aspect_ratio(width, height)
    # A frame of a camera is decoded already.
    return DecodeCost(decoded * bytes_per_pixel if format else 0, pixels)


def check_shape(width: int, height: int) -> int:
    """Returns the number of pixels. Raises PictureError if there are none."""
    if not (pixels := width * height):
        raise PictureError(f"is {width} x {height} pixels: an empty picture")
    return pixels


def check_aspect_ratio(width: int, height: int) -> None:
    """Raises PictureError for a strip."""
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise PictureError(f"is {width} x {height} pixels: too narrow to show anything when resized")


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
