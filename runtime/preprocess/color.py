"""Colors: any Pillow mode, bit depth, transparency and ICC profile become 8-bit sRGB."""

import io
from typing import Any

from PIL import Image

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
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
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
    """Scales deep greys, which Pillow's own conversion clips to white.

    I;16 spans 0 to 65535; so does I, unless it needs more bits; F is 0 to 1, or 0 to 255, or deeper.
    """
    import numpy as np  # late: few pictures need it

    values = np.asarray(image).astype(np.float32)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    highest = float(values.max())
    if image.mode == "F" and highest <= 255:
        full = 1.0 if highest <= 1 else 255.0
    else:
        full = float(max(65535, (1 << int(highest).bit_length()) - 1))
    values.clip(0, full, out=values)  # in place: a large picture takes many bytes
    values *= 255 / full
    values += 0.5
    return Image.fromarray(values.astype(np.uint8))


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
