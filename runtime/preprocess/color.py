"""Colors: any Pillow mode, bit depth, transparency and ICC profile become 8-bit sRGB."""

import io
from typing import Any

from PIL import Image

from runtime.common.errors import UnsupportedPictureError

MAX_ICC_BYTES = 4 * 2**20  # CMYK profiles of printers reach 3 MB


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns the image in mode RGB, in sRGB as far as its ICC profile says, with transparency over white."""
    icc = image.info.get("icc_profile")
    alpha = None
    if image.mode.startswith("I") or image.mode == "F":
        alpha = _opacity(image)  # of the values before they are scaled
        image = _to_8_bit(image)
    if image.mode == "La":  # Pillow converts La to LA, and to nothing else
        image = image.convert("LA")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "PA"):
        colors = image.convert("RGBA")
        alpha = colors.getchannel("A")
        is_grey = image.mode in ("L", "LA") and icc is not None and icc[16:20] == b"GRAY"
        image = image.getchannel("L") if is_grey else colors  # a profile of grey applies to one channel
        del colors
    if image.mode not in ("L", "CMYK", "RGB"):  # RGB to RGB would copy 8 MB of a camera's frame
        image = image.convert("RGB")
    image = _to_srgb(image, icc) if icc else image
    if image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is None:
        return image
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=alpha)
    return canvas


def _opacity(image: Image.Image) -> Image.Image | None:
    """Returns the mask of a deep grey PNG with one transparent value; None for other pictures."""
    if not isinstance(clear := image.info.get("transparency"), int):
        return None
    import numpy as np  # late, as below

    return Image.fromarray(np.where(np.asarray(image) == clear, 0, 255).astype(np.uint8))


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scales deep greys, which Pillow's own conversion clips to white."""
    import numpy as np  # late: few pictures need it

    values = np.asarray(image).astype(np.float32)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    white = 65535
    if image.mode == "F":
        white = _white(float(values.min()), float(values.max()))
    values.clip(0, white, out=values)  # in place: a large picture takes many bytes
    values *= 255 / white
    values += 0.5
    return Image.fromarray(values.astype(np.uint8))


def _white(lowest: float, highest: float) -> int:
    """Returns which number is white in a picture of floats: 1, 255 or 65535.

    Sharpening may exceed black and white, here by up to a quarter. Raises UnsupportedPictureError for other
    ranges, such as -1 to 1, or 0 to 10.
    """
    white = next((white for white in (1, 255, 65535) if highest <= 1.25 * white), 0)
    if not white or lowest < -0.25 * white or (white > 1 and highest < white / 8):
        raise UnsupportedPictureError(
            f"has floating-point pixels from {lowest:g} to {highest:g}, of which white is unknown: "
            "save it as JPEG or PNG"
        )
    return white


def _to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """Ignores a profile that is damaged, of another color space, or over 4 MB, as viewers do."""
    if len(icc) > MAX_ICC_BYTES:
        return image
    from PIL import ImageCms  # late: most photos have no profile, and its library takes time to load

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        converted: Any = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    return converted if isinstance(converted, Image.Image) else image
