"""Bytes of a picture's file, and the Pillow plugin that decodes them."""

import io
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from runtime.common.errors import PictureError, UnsupportedPictureError

EncodedSource = str | Path | bytes | BinaryIO  # a path, encoded bytes, or an open binary file

# Paths by which a process names an open file: standard input, and a shell's <(command).
OPEN_FILE_PATHS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")

MAX_FILE_BYTES = 2**30
CHUNK_BYTES = 2**24

# What TiffImagePlugin raises for pixels that Pillow has no mode for, such as three channels of floats.
TIFF_PIXELS_NOT_SUPPORTED = "unknown pixel mode"


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
    elif isinstance(source, (str, Path)):
        path = Path(source)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise PictureError("is a folder, not a picture")
        # Opening a pipe in a folder of photos would wait; reading a device would never end.
        if not stat.S_ISREG(mode) and not str(path).startswith(OPEN_FILE_PATHS):
            raise PictureError("is a pipe or a device, not a picture: send its data to standard input")
        with path.open("rb") as file:
            data = _read_all(file)
    else:
        data = _read_all(source)
    if not data:
        raise PictureError("is empty")
    return data


def _read_all(file: BinaryIO) -> bytes:
    """Reads to the end in chunks: one read up to the limit would allocate that much memory."""
    chunks: list[bytes] = []
    free = MAX_FILE_BYTES
    while chunk := file.read(CHUNK_BYTES):
        free -= len(chunk)
        if free < 0:
            raise PictureError(f"is over {MAX_FILE_BYTES >> 20:,} MiB, more than a picture can be")
        chunks.append(chunk)
    return b"".join(chunks)


def open_image(data: bytes) -> Image.Image:
    """Returns the image with its header read, by its first bytes and not by its name.

    Calls the plugin instead of Image.open: Pillow's global pixel limit does not apply, other plugins are not
    imported, and formats that run another program (EPS) are never opened. Raises UnsupportedPictureError, and
    whatever a plugin raises for damaged data.
    """
    for matches, opener in _FORMATS:
        if matches(data[:16]):
            return opener(io.BytesIO(data))
    raise UnsupportedPictureError("is not a picture of a supported format")


def describe_error(error: Exception) -> str:
    """Returns the reason in an exception of reading or decoding a picture, on one line."""
    if isinstance(error, PictureError):
        return str(error)
    if isinstance(error, MemoryError):
        return "does not fit into this machine's memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    detail = " ".join(str(error).split())[:200]
    return f"is damaged ({detail or type(error).__name__})"


def _plugin(module: str, name: str) -> Callable[[BinaryIO], Image.Image]:
    def opener(file: BinaryIO) -> Image.Image:
        from importlib import import_module

        try:
            plugin = import_module(f"PIL.{module}")
        except ImportError:
            raise UnsupportedPictureError(f"needs a newer Pillow ({name})") from None
        image: Image.Image = getattr(plugin, name)(file)
        return image

    return opener


def _open_tiff(file: BinaryIO) -> Image.Image:
    try:
        return _plugin("TiffImagePlugin", "TiffImageFile")(file)
    except SyntaxError as error:
        if TIFF_PIXELS_NOT_SUPPORTED in str(error):
            raise UnsupportedPictureError(
                "is a TIFF whose pixel type is not supported: save it with 8 or 16 bits per channel"
            ) from None
        raise


def _open_heif(file: BinaryIO) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise UnsupportedPictureError(
            "is HEIC, which needs pillow-heif: in the clone, run pip install '.[heic]'"
        ) from None
    image: Image.Image = HeifImageFile(file)  # type: ignore[no-untyped-call]
    return image


def _starts(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magic)


def _brand(*brands: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[4:8] == b"ftyp" and head[8:12] in brands


_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_JPEG2000_MAGIC = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO], Image.Image]], ...] = (
    # Also the first picture of an MPO, which is a JPEG with more of them behind it.
    (_starts(b"\xff\xd8\xff"), _plugin("JpegImagePlugin", "JpegImageFile")),
    (_starts(b"\x89PNG\r\n\x1a\n"), _plugin("PngImagePlugin", "PngImageFile")),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", _plugin("WebPImagePlugin", "WebPImageFile")),
    (_brand(b"avif", b"avis"), _plugin("AvifImagePlugin", "AvifImageFile")),
    (_brand(*_HEIF_BRANDS), _open_heif),
    (_starts(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _open_tiff),
    (_starts(b"GIF87a", b"GIF89a"), _plugin("GifImagePlugin", "GifImageFile")),
    (_starts(b"BM"), _plugin("BmpImagePlugin", "BmpImageFile")),
    (_starts(*_JPEG2000_MAGIC), _plugin("Jpeg2KImagePlugin", "Jpeg2KImageFile")),
    (_starts(b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), _plugin("PpmImagePlugin", "PpmImageFile")),
)
