"""A TIFF gives the right pixels or an error that names what it has: never other pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from runtime.common.errors import PictureError, UnsupportedPictureError
from runtime.preprocess.picture import read_picture
from tests.runtime.preprocess.pictures import GREY, PICTURE, SIZE, encode, resized

COLORS, GREYS = np.asarray(PICTURE), np.asarray(GREY)
PLANES = np.moveaxis(COLORS, -1, 0)
WITH_ALPHA = np.stack([GREYS, 255 - GREYS])
SHARPENED = GREYS.astype(np.float32) / 255 * 1.3 - 0.1  # to 1.06
PALETTED = PICTURE.quantize(200)


def tiff(pixels: NDArray[Any], tags: dict[str, int] | None = None, **options: Any) -> bytes:
    """A TIFF without compression, with `tags` in place of those that fit the pixels."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **options)
    file.seek(0)
    with tifffile.TiffFile(file, mode="r+b") as written:
        for name, value in (tags or {}).items():
            written.pages[0].tags[name].overwrite(value)  # type: ignore[union-attr]
    return file.getvalue()


def of_12_bits() -> bytes:
    values = (GREYS.astype(int) * 4095 // 255).reshape(150, 100, 2)
    first, second = values[..., 0], values[..., 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1)
    return tiff(packed.astype(np.uint8).reshape(150, 300), {"BitsPerSample": 12, "ImageWidth": 200})


def deep(pixels: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    full = np.iinfo(dtype).max
    return (pixels.astype(np.float64) * (full / 255)).astype(dtype)


def palette(scale: int) -> NDArray[np.uint16]:
    colors = np.array([*(PALETTED.getpalette() or ()), *bytes(768)][:768], np.uint16)
    return colors.reshape(256, 3).T * np.uint16(scale)


def mean_error(data: bytes, expected: Image.Image) -> float:
    return float(np.abs(read_picture(data, SIZE).astype(int) - resized(expected)).mean())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(deep(GREYS, "u2")), GREY),
        (tiff(deep(GREYS, "u2"), byteorder=">", compression="zlib"), GREY),
        (tiff(255 - GREYS, photometric="miniswhite"), GREY),
        (tiff(deep(COLORS, "u2"), photometric="rgb"), PICTURE),
        (tiff(deep(COLORS, "u2"), photometric="rgb", byteorder=">", tile=(64, 64)), PICTURE),
        (tiff(PLANES, photometric="rgb", planarconfig="separate"), PICTURE),
        (tiff(PLANES, photometric="rgb", planarconfig="separate", tile=(64, 64)), PICTURE),
        (
            tiff(deep(PLANES, "u2"), photometric="rgb", planarconfig="separate", compression="zlib"),
            PICTURE,
        ),
        (tiff(GREYS.astype(np.float32) / 255), GREY),
        (tiff(SHARPENED), Image.fromarray((SHARPENED.clip(0, 1) * 255).round().astype(np.uint8))),
        (tiff(GREYS.astype(np.float32) * 257, byteorder=">"), GREY),
        (tiff(np.asarray(PALETTED), photometric="palette", colormap=palette(257)), PALETTED),
        (encode(PICTURE.convert("YCbCr"), "TIFF"), PICTURE),
        (encode(PICTURE.convert("YCbCr"), "TIFF", compression="tiff_lzw"), PICTURE),
        (encode(PICTURE.convert("LAB"), "TIFF"), PICTURE),
    ],
)
def test_pixels_that_are_read_are_right(data: bytes, expected: Image.Image) -> None:
    assert mean_error(data, expected) < 1.5


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (of_12_bits(), "12 bits per channel"),
        (tiff(deep(GREYS, "u4")), "32-bit integers"),
        (tiff(GREYS.astype(np.uint32)), "32-bit integers"),
        (tiff(deep(COLORS, "u4"), photometric="rgb"), "pixel type"),
        (tiff(COLORS.astype(np.float32) / 255, photometric="rgb"), "pixel type"),
        (tiff(deep(GREYS, "i1")), "signed samples"),
        (tiff(deep(GREYS, "i2")), "signed samples"),
        (tiff(deep(GREYS, "i2"), byteorder=">", compression="zlib"), "signed samples"),
        (encode(Image.fromarray(GREYS.astype(np.int32)), "TIFF"), "signed samples"),
        (tiff(deep(255 - GREYS, "u2"), photometric="miniswhite"), "white as 0"),
        (tiff(1 - GREYS.astype(np.float32) / 255, photometric="miniswhite"), "white as 0"),
        (tiff(GREYS.astype(np.float32), byteorder=">", compression="zlib"), "big-endian order"),
        (tiff(GREYS.astype(np.float32) / 127.5 - 1), "from -0.8.* to 0.7"),
        (tiff(GREYS.astype(np.float32) / 25), "to 9.12"),
        (tiff(GREYS.astype(np.float32) * 1000), "to 228000"),
        (tiff(deep(PLANES, "u2"), photometric="rgb", planarconfig="separate"), "plane of its own"),
        (tiff(deep(PLANES, "u2"), photometric="rgb", planarconfig="separate", tile=(64, 64)), "plane of its"),
        (
            tiff(WITH_ALPHA, photometric="minisblack", planarconfig="separate", extrasamples=[2]),
            "plane of its own",
        ),
        (
            tiff(
                WITH_ALPHA,
                photometric="minisblack",
                planarconfig="separate",
                extrasamples=[2],
                compression="zlib",
            ),
            "plane of its own",
        ),
        (
            tiff(WITH_ALPHA, photometric="minisblack", planarconfig="separate", extrasamples=[0]),
            "pixel type",
        ),
        (
            tiff(
                np.moveaxis(np.asarray(PICTURE.convert("LAB")), -1, 0),
                photometric="cielab",
                planarconfig="separate",
            ),
            "plane of its own",
        ),
        (
            tiff(np.asarray(PICTURE.convert("YCbCr")), photometric="ycbcr", subsampling=(1, 1)).replace(
                *(b"\x12\x02\x03\0\x02\0\0\0" + sides for sides in (b"\1\0\1\0", b"\2\0\2\0"))
            ),
            "YCbCr colors at a reduced size",
        ),
        (tiff(np.asarray(PALETTED), photometric="palette", colormap=palette(1)), "ends at 255"),
    ],
)
def test_other_pixels_are_refused_by_their_type(data: bytes, reason: str) -> None:
    with pytest.raises(UnsupportedPictureError, match=rf"^(is|has) .*{reason}.*: save it as JPEG or PNG$"):
        read_picture(data)


def test_reversed_bits_are_right_or_refused() -> None:
    """Pillow has no decoder for some of them."""
    bits = np.packbits(np.unpackbits(GREYS[..., None], axis=2)[..., ::-1], axis=2)[..., 0]
    grey, inverted = (
        # tifffile writes no such tag itself.
        tiff(bits, photometric=kind, extratags=[(65000, 3, 1, 2, True)]).replace(b"\xe8\xfd", b"\x0a\1")
        for kind in ("minisblack", "miniswhite")
    )
    assert mean_error(grey, GREY) == 0
    with pytest.raises(PictureError, match="pixel type is not supported: save it as JPEG or PNG"):
        read_picture(inverted)
