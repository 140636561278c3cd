"""The pixel types of TIFFs. Pillow opens some of them, and then reads wrong pixels without an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.common.errors import UnsupportedPictureError

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

# TIFF tags
BITS_PER_SAMPLE, PHOTOMETRIC, FILL_ORDER, PLANAR, COLOR_MAP = 258, 262, 266, 284, 320
SAMPLE_FORMAT, YCBCR_SUBSAMPLING = 339, 530
WHITE_IS_ZERO, SEPARATE_PLANES, SIGNED = 0, 2, 2  # their values


def unsupported_tiff(pixels: str) -> UnsupportedPictureError:
    """Returns the error for a TIFF with these pixels."""
    return UnsupportedPictureError(f"is a TIFF with {pixels}, which is not supported: save it as JPEG or PNG")


def check_tiff_pixels(image: TiffImageFile) -> None:
    """Raises UnsupportedPictureError for pixels that Pillow reads wrong. The file is not decoded yet."""
    tags, mode = image.tag_v2, image.mode
    is_raw = image.info["compression"] == "raw"
    if SIGNED in tags.get(SAMPLE_FORMAT, ()):
        raise unsupported_tiff("signed samples")
    if mode == "I":
        raise unsupported_tiff("32-bit integers")
    if 12 in tags.get(BITS_PER_SAMPLE, ()):
        raise unsupported_tiff("12 bits per channel")
    if mode[0] in "IF" and tags.get(PHOTOMETRIC, WHITE_IS_ZERO) == WHITE_IS_ZERO:
        raise unsupported_tiff("16 or more bits per channel and white as 0")
    if mode == "F" and tags.prefix == b"MM" and not is_raw:
        raise unsupported_tiff("compressed floating-point numbers in big-endian order")
    if mode == "YCbCr" and tags.get(YCBCR_SUBSAMPLING) != (1, 1):  # else libtiff returns RGB
        raise unsupported_tiff("uncompressed YCbCr colors at a reduced size")
    if mode in ("P", "PA") and 0 < max(tags[COLOR_MAP]) < 256:
        raise unsupported_tiff("a palette that ends at 255 instead of 65535")
    if tags.get(PLANAR) == SEPARATE_PLANES and not _reads_planes(image, is_raw):
        raise unsupported_tiff("each channel in a plane of its own")


def _reads_planes(image: TiffImageFile, is_raw: bool) -> bool:
    """Whether Pillow reads the planes of this picture right."""
    if not is_raw:
        return image.mode in ("RGB", "RGBA", "CMYK") or len(image.getbands()) == 1
    # Pillow gives each plane the decoder of one letter: that of 8 bits, not inverted and not reversed.
    tags = image.tag_v2
    decoders = dict.fromkeys(str(tile[3][0]) for tile in image.tile)  # type: ignore[index]
    return (
        image.mode in ("L", "P", "RGB", "RGBA", "CMYK")
        and "".join(decoders) == image.mode
        and set(tags.get(BITS_PER_SAMPLE, ())) == {8}
        and tags.get(FILL_ORDER, 1) == 1
        and tags.get(PHOTOMETRIC, WHITE_IS_ZERO) != WHITE_IS_ZERO
    )
