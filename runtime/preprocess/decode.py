"""Bytes of a picture's file, and the Pillow plugin that decodes them."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from runtime.common.errors import PictureError, UnsupportedPictureError
from runtime.common.packages import install_command
from runtime.common.regular_file import open_regular
from runtime.preprocess.formats import HEAD_BYTES, format_of
from runtime.preprocess.memory import total_memory
from runtime.preprocess.tiff_pixels import check_tiff_pixels

if TYPE_CHECKING:
    from PIL import Image

EncodedSource = str | Path | bytes | BinaryIO  # a path, encoded bytes, or an open binary file

SOURCES = "give a path, bytes, a file opened with 'rb', or an array uint8 [H, W, 3]"

# Paths by which a process names an open file: standard input, and a shell's <(command).
OPEN_FILE_PATHS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")

# Uncompressed, the largest picture (limits.MAX_PIXELS) has 534 MB with 16 bits per channel.
MAX_FILE_BYTES = 2**29
CHUNK_BYTES = 2**20

# Pillow reads these PNGs as 8 bits, but does not scale their transparent value, tRNS.
TRANSPARENCY_SCALE: dict[str, Callable[[int], int]] = {
    "L;2": lambda value: 85 * (value & 3),
    "L;4": lambda value: 17 * (value & 15),
    "RGB;16B": lambda value: value >> 8,
}

# In the error of PngImagePlugin for a profile or a compressed text of over 1 MB, or 64 MB of texts.
PNG_METADATA_LIMITS = "MAX_TEXT_"

# The error of WebPImagePlugin for damaged data, and also when there is no memory for the pixels.
WEBP_NOT_OPENED = "could not create decoder object"

# In Pillow's errors for pixels of a TIFF that it has no mode or no decoder for: three channels of floats,
# additional channels in planes, or bits in reversed order.
NO_TIFF_MODE, NO_TIFF_PLANE, NO_TIFF_DECODER = "unknown pixel mode", "string index", "unknown raw mode"
TIFF_PIXELS_NOT_SUPPORTED = "is a TIFF whose pixel type is not supported: save it as JPEG or PNG"


def read_bytes(path: str | Path) -> bytes:
    """Returns the bytes of a picture's file, not decoded. Raises PictureError as `read_picture` does."""
    try:
        return read_encoded(path)
    except (OSError, PictureError) as error:
        raise PictureError(f"{path}: {describe_error(error)}") from None


def read_encoded(source: EncodedSource) -> bytes:
    """Returns the encoded bytes of a source. Raises OSError, or PictureError without the path."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        check_size(len(data))
        return data
    with open_encoded(source) as (file, _):
        return read_all(file)


@contextmanager
def open_encoded(source: EncodedSource) -> Iterator[tuple[BinaryIO, int | None]]:
    """Yields a source as a file at its start, and its size in bytes, None if only reading it shows that.

    The size and the first bytes are checked before more is read: `truncate -s 100G x.jpg` takes no memory.
    Raises OSError, or PictureError without the path.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        check_size(len(source))
        yield io.BytesIO(source), len(source)
    elif isinstance(source, (str, Path)):
        path = Path(source)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise PictureError("is a folder, not a picture")
        # Opening a pipe in a folder of photos would wait; reading a device would never end.
        if not stat.S_ISREG(mode) and not str(path).startswith(OPEN_FILE_PATHS):
            raise PictureError("is a pipe or a device, not a picture: send its data to standard input")
        with open_regular(path) if stat.S_ISREG(mode) else path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size if stat.S_ISREG(mode) else None
            if size is not None:
                check_size(size)
                format_of(file.peek(HEAD_BYTES)[:HEAD_BYTES])
            yield file, size
    elif isinstance(source, io.TextIOBase) or not callable(getattr(source, "read", None)):
        raise UnsupportedPictureError(f"is of type {type(source).__name__}: {SOURCES}")
    else:
        yield source, None


def check_size(size: int) -> None:
    """Raises PictureError for a file of no bytes, or of more than a picture can have."""
    if not size:
        raise PictureError("is empty")
    if size > (limit := max_file_bytes()):
        raise PictureError(f"has {size >> 20:,} MiB, and a picture may have {limit >> 20:,}")


def max_file_bytes() -> int:
    """Returns the most bytes that a picture's file may have: a small board has less memory."""
    return min(MAX_FILE_BYTES, total_memory() // 4)


def read_all(file: BinaryIO) -> bytes:
    """Reads to the end in chunks: one read up to the limit would allocate that much memory."""
    chunks: list[bytes] = []
    limit = free = max_file_bytes()
    while chunk := file.read(CHUNK_BYTES):
        if not chunks and len(chunk) >= HEAD_BYTES:
            format_of(chunk[:HEAD_BYTES])  # here, before the rest is read
        free -= len(chunk)
        if free < 0:
            raise PictureError(f"is over {limit >> 20:,} MiB, more than a picture may have")
        chunks.append(chunk)
    data = b"".join(chunks)
    check_size(len(data))
    return data


def open_image(data: bytes) -> Image.Image:
    """Returns the image with its header read, by its first bytes and not by its name.

    Calls the plugin instead of Image.open: Pillow's global pixel limit does not apply, other plugins are not
    imported, and formats that run another program (EPS) are never opened. Raises UnsupportedPictureError, and
    whatever a plugin raises for damaged data.
    """
    return _OPENERS[format_of(data[:HEAD_BYTES])](io.BytesIO(data))


def describe_error(error: Exception) -> str:
    """Returns the reason in an exception of reading or decoding a picture, on one line."""
    if isinstance(error, PictureError):
        return str(error)
    if isinstance(error, MemoryError):
        return "needs too much memory to decode: save a smaller copy in a photo editor"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    detail = " ".join(str(error).split())[:200]
    if PNG_METADATA_LIMITS in detail:
        return "has a color profile or a text of over 1 MB: save it again without metadata"
    if WEBP_NOT_OPENED in detail:
        return "is damaged or needs too much memory to decode: save a smaller copy in a photo editor"
    if NO_TIFF_DECODER in detail:
        return TIFF_PIXELS_NOT_SUPPORTED
    return f"is damaged ({detail or type(error).__name__})"


def _plugin(name: str) -> Callable[[BinaryIO], Image.Image]:
    def opener(file: BinaryIO) -> Image.Image:
        try:
            plugin = import_module(f"PIL.{name}ImagePlugin")
        except ImportError:  # AVIF came with Pillow 11.3
            plugin = None
        if not getattr(plugin, "SUPPORTED", plugin is not None):  # Pillow can be built without AVIF and WebP
            raise UnsupportedPictureError(
                f"is {name.upper()}, which the installed Pillow cannot decode: "
                "run `pip install --upgrade Pillow`, or save it as JPEG or PNG"
            )
        image: Image.Image = getattr(plugin, f"{name}ImageFile")(file)
        return image

    return opener


def _open_png(file: BinaryIO) -> Image.Image:
    image = _plugin("Png")(file)
    scale = TRANSPARENCY_SCALE.get(str(image.tile[0][3])) if image.tile else None  # type: ignore[attr-defined]
    clear = image.info.get("transparency")
    if scale and clear is not None:
        image.info["transparency"] = tuple(map(scale, clear)) if isinstance(clear, tuple) else scale(clear)
    return image


def _open_tiff(file: BinaryIO) -> Image.Image:
    try:
        image = _plugin("Tiff")(file)
    except (SyntaxError, IndexError) as error:
        if NO_TIFF_MODE in str(error) or NO_TIFF_PLANE in str(error):
            raise UnsupportedPictureError(TIFF_PIXELS_NOT_SUPPORTED) from None
        raise
    check_tiff_pixels(image)  # type: ignore[arg-type]
    return image


def _open_heif(file: BinaryIO) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise UnsupportedPictureError(
            f"is HEIC, which needs pillow-heif: {install_command('heic')}"
        ) from None
    image: Image.Image = HeifImageFile(file)  # type: ignore[no-untyped-call]
    return image


_OPENERS: dict[str, Callable[[BinaryIO], Image.Image]] = {
    "JPEG": _plugin("Jpeg"),
    "PNG": _open_png,
    "WEBP": _plugin("WebP"),
    "AVIF": _plugin("Avif"),
    "HEIF": _open_heif,
    "TIFF": _open_tiff,
    "GIF": _plugin("Gif"),
    "BMP": _plugin("Bmp"),
}
