"""A picture becomes pixels here and nowhere else: training, calibration, parity and the device all call this.

Decode (large JPEGs at a reduced scale) → EXIF orientation → ICC profile to sRGB → RGB → bilinear,
antialiased, stretched to the model's input. Whatever a phone, a camera or an attacker hands in either comes
out as pixels or raises PictureError with one line.
"""

import io
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Lock
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.common.errors import PictureError, PictureKindError

PICTURE_VERSION = (
    1  # bumped whenever a picture's pixels change: caches of what was computed from them are keyed by it
)

# What counts as a picture in a folder. A file given by its own name is tried whatever it is called.
SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
    }
    | {".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"}
)

# Paths by which a process names what it was handed: standard input, and a shell's <(command).
_OPEN_ALREADY = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")

MAX_BYTES = 2**30
_STEP = 2**24
MAX_JPEG_PIXELS = 250_000_000  # decoded at an eighth of the width and height, see _DRAFT
MAX_PIXELS = 89_000_000  # just under where Pillow itself warns of a decompression bomb
MAX_ASPECT = 100
# A JPEG in several scans is gone over once for each, and 20 kB can hold thousands of empty ones: pixels times
# scans, which is 16 scans of the largest picture, or 330 of a photo of 12 megapixels.
MAX_SCANNED = 16 * MAX_JPEG_PIXELS
MAX_ICC_BYTES = 4 * 2**20  # printers' CMYK profiles reach 3 MB

# libjpeg decodes at 1/2, 1/4 or 1/8 for a fraction of the cost. It is asked for at least this many times
# the size that the resize needs: 1 moved probabilities by up to 0.12, 2 by 0.03, 3 by less than 0.02, and a
# 12-megapixel photo costs the same at 2 and 3, a fifth more at 4 (benchmarks/classify.py).
_DRAFT = 3

# Bytes that a pixel takes at the most between file and model, measured, by Pillow's names. A TIFF's 16 are
# enough for its tile beside it.
_BYTES_A_PIXEL = {"JPEG": 8, "WEBP": 22, "JPEG2000": 25, "AVIF": 18}
_BYTES_OF_OTHERS = 16

_ORIENTATION = 0x0112  # the EXIF tag


def read_picture(
    source: str | Path | bytes | BinaryIO | NDArray[np.uint8], size: tuple[int, int] = (224, 224)
) -> NDArray[np.uint8]:
    """Reads a path, encoded bytes, a binary file or a frame into uint8 [H, W, 3], RGB, `size` being (H, W).

    A frame is uint8 [h, w, 3], RGB, upright, in sRGB: what a camera gives. Raises PictureError: unreadable,
    damaged or too large; PictureKindError: not a picture, or of a kind that needs another package. Where
    threads decode at once more than half of the machine's memory would hold, they wait for each other.
    """
    try:
        return _decoded(source, size)
    except Exception as error:  # Pillow's plugins raise whatever the bytes made them stumble over
        thing = f"{source}: " if isinstance(source, (str, Path)) else ""
        kind = PictureKindError if isinstance(error, PictureKindError) else PictureError
        failure = kind(f"{thing}{_reason(error)}")
    raise failure  # not in there: it would keep `error`, whose frames hold what was decoded


def _decoded(
    source: str | Path | bytes | BinaryIO | NDArray[np.uint8], size: tuple[int, int]
) -> NDArray[np.uint8]:
    data = b"" if isinstance(source, np.ndarray) else _read_bytes(source)
    image = Image.fromarray(source) if isinstance(source, np.ndarray) else _open(data)
    whole = image.size
    if image.format == "JPEG":  # a HEIC's draft would be its thumbnail
        side = _DRAFT * max(size)  # enough for either way round: photos are often stored sideways
        image.draft(None, (side, side))
    with _ROOM.taken(_check_size(image, whole, data)):
        return _pixels(image, size)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a picture's file, not looked into. Raises PictureError as `read_picture` does."""
    try:
        return _read_bytes(path)
    except (OSError, PictureError) as error:
        raise PictureError(f"{path}: {_reason(error)}") from None


def _read_bytes(source: str | Path | bytes | BinaryIO) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, (str, Path)):
        path = Path(source)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise PictureError("is a folder, not a picture")
        # A pipe in a folder of photos would be waited for, a device read without an end.
        if not stat.S_ISREG(mode) and not str(path).startswith(_OPEN_ALREADY):
            raise PictureError("is a pipe or a device, not a picture: hand it to standard input")
        with path.open("rb") as file:
            data = _read_all(file)
    else:
        data = _read_all(source)
    if not data:
        raise PictureError("is empty")
    return data


def _read_all(file: BinaryIO) -> bytes:
    """To the end or the limit, in steps: asking for the limit at once would ask for that much memory."""
    parts: list[bytes] = []
    left = MAX_BYTES
    while part := file.read(_STEP):
        left -= len(part)
        if left < 0:
            raise PictureError(f"is over {MAX_BYTES >> 20:,} MiB, more than a picture can be")
        parts.append(part)
    return b"".join(parts)


def _open(data: bytes) -> Image.Image:
    """Opens by the first bytes, not by the name, and only kinds on this list.

    Calling the plugin rather than Image.open keeps Pillow's own, global, pixel limit out of it, spares the
    import of every other plugin, and leaves alone the kinds that run another program (EPS).
    """
    for matches, opener in _KINDS:
        if matches(data[:16]):
            return opener(io.BytesIO(data))
    raise PictureKindError("is not a picture of a kind that is known here")


def _plugin(module: str, name: str) -> Callable[[BinaryIO], Image.Image]:
    def opener(file: BinaryIO) -> Image.Image:
        from importlib import import_module

        try:
            plugin = import_module(f"PIL.{module}")
        except ImportError:
            raise PictureKindError(f"needs a newer Pillow ({name})") from None
        image: Image.Image = getattr(plugin, name)(file)
        return image

    return opener


def _open_heif(file: BinaryIO) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise PictureKindError("is HEIC, which needs pillow-heif: pip install 'vgg-edge[heic]'") from None
    image: Image.Image = HeifImageFile(file)  # type: ignore[no-untyped-call]
    return image


def _starts(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magic)


def _brand(*brands: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[4:8] == b"ftyp" and head[8:12] in brands


_KINDS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO], Image.Image]], ...] = (
    # Also the first picture of an MPO, which is a JPEG with more of them behind it.
    (_starts(b"\xff\xd8\xff"), _plugin("JpegImagePlugin", "JpegImageFile")),
    (_starts(b"\x89PNG\r\n\x1a\n"), _plugin("PngImagePlugin", "PngImageFile")),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", _plugin("WebPImagePlugin", "WebPImageFile")),
    (_brand(b"avif", b"avis"), _plugin("AvifImagePlugin", "AvifImageFile")),
    (_brand(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), _open_heif),
    (_starts(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _plugin("TiffImagePlugin", "TiffImageFile")),
    (_starts(b"GIF87a", b"GIF89a"), _plugin("GifImagePlugin", "GifImageFile")),
    (_starts(b"BM"), _plugin("BmpImagePlugin", "BmpImageFile")),
    (
        _starts(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
        _plugin("Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    ),
    (_starts(b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), _plugin("PpmImagePlugin", "PpmImageFile")),
)


def _check_size(image: Image.Image, whole: tuple[int, int], data: bytes) -> int:
    """The bytes that decoding will take, from the header; `whole` is the size of what draft has reduced."""
    width, height = whole
    pixels = width * height
    most = MAX_JPEG_PIXELS if image.format == "JPEG" else MAX_PIXELS
    # A board with 512 MB takes 13 megapixels of PNG, and 26 of progressive JPEG.
    each = _BYTES_A_PIXEL.get(image.format or "", _BYTES_OF_OTHERS)
    fit = min(most, _memory() // 2 // each)
    at_once = pixels
    if image.format == "JPEG" and not _is_kept_whole(data):
        at_once = image.width * image.height
    elif image.format == "TIFF":
        at_once = max(pixels, _pixels_of_tile(data, image.tag_v2.offset))  # type: ignore[attr-defined]
    if pixels > most or at_once > fit:
        tiles = "in a tile " if at_once > pixels else ""
        raise PictureError(
            f"has {max(pixels, at_once) / 1e6:,.0f} megapixels {tiles}({width} x {height}), "
            f"and a {image.format} may have {(most if pixels > most else fit) // 10**6}"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise PictureError(f"is {width} x {height} pixels: nothing could be seen in it when made square")
    scans = MAX_SCANNED // pixels
    # Counted roughly first: the same two bytes may stand in a film behind the photo.
    if image.format == "JPEG" and data.count(b"\xff\xda") > scans and _scans(data) > scans:
        raise PictureError(f"has over {scans} scans, and would take minutes to decode: save it anew")
    return at_once * each if image.format else 0  # a frame is decoded already


class _Room:
    """The memory for what this process decodes, shared by its threads in the order in which they come."""

    def __init__(self) -> None:
        self._taken = 0  # bytes
        self._turn = Lock()  # of the one that waits: small pictures do not overtake a large one for ever
        self._change = Condition()

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        if not count:
            yield
            return
        with self._turn, self._change:
            self._change.wait_for(lambda: not self._taken or self._taken + count <= _memory() // 2)
            self._taken += count
        try:
            yield
        finally:
            with self._change:
                self._taken -= count
                self._change.notify()


_ROOM = _Room()


def _memory() -> int:
    """Bytes of this machine's memory; where it is not told, as much as any picture takes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 2**40


def _scans(data: bytes) -> int:
    """How many scans a JPEG has."""
    return sum(marker == _SCAN for marker, _ in _segments(data))


def _is_kept_whole(data: bytes) -> bool:
    """Whether libjpeg keeps all coefficients of a JPEG, not reduced: one scan does not hold them all."""
    components = 0
    for marker, at in _segments(data):
        if marker in _PROGRESSIVE:
            return True
        if marker in _FRAMES:
            components = data[at + 5]
        elif marker == _SCAN:  # of the components that it holds itself, the first decides
            return data[at] < components
    return False


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """A JPEG's markers, and where what follows their length begins (ITU-T T.81, annex B)."""
    at = 2
    while (marker := _MARKER.search(data, at)) and marker[1] != b"\xd9":  # the end of the image
        yield marker[1][0], marker.end() + 2
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")


_SCAN = 0xDA
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} - _PROGRESSIVE
# Not in it: an escaped 0xFF in the compressed data, and restarts, which have no length.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")


def _pixels_of_tile(data: bytes, at: int) -> int:
    """The pixels of a TIFF's tile, which libtiff holds whole and which may be far larger than the picture.

    Read as libtiff reads the directory at `at`: of a tag that stands there twice, or with an odd type, Pillow
    may take another value. Raises PictureError: a side that is no one number.
    """
    big = 43 in data[2:4]
    count, entry = ("Q", "HHQ8s") if big else ("H", "HHL4s")
    order = "<" if data.startswith(b"I") else ">"
    (entries,) = struct.unpack_from(order + count, data, at)
    at += struct.calcsize(order + count)
    sides = {_TILE_WIDTH: 0, _TILE_LENGTH: 0}
    for _ in range(min(entries, 2**16)):
        tag, kind, values, value = struct.unpack_from(order + entry, data, at)
        at += struct.calcsize(order + entry)
        if tag in sides:
            if kind not in _TIFF_INTEGERS or values != 1:
                raise PictureError("is damaged (a tile's size is no number)")
            (side,) = struct.unpack_from(order + _TIFF_INTEGERS[kind], value)
            sides[tag] = max(sides[tag], side)
    return sides[_TILE_WIDTH] * sides[_TILE_LENGTH]


_TILE_WIDTH, _TILE_LENGTH = 322, 323
_TIFF_INTEGERS = {3: "H", 4: "L"}  # TIFF 6.0 allows no others for a tile's sides


def _pixels(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = size
    image.load()
    image = _upright(image)
    image = _to_rgb(image)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF: the picture itself may be good
        orientation = 1
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _to_rgb(image: Image.Image) -> Image.Image:
    """sRGB as far as a profile says how, with whatever is see-through laid over white."""
    icc = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    alpha = None
    if image.mode == "La":  # Pillow converts it no further at once
        image = image.convert("LA")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "PA"):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if image.mode not in ("L", "CMYK", "RGB"):  # RGB to RGB would be a copy, of 8 MB for a camera's frame
        image = image.convert("RGB")
    image = _to_srgb(image, icc) if icc else image
    if image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is None:
        return image
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=alpha)
    return canvas


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scales deep greys, which Pillow's own conversion clips to white.

    I;16 spans 0-65535; so does I, unless it needs more bits; F is 0-1, or 0-255, or deeper.
    """
    values = np.asarray(image).astype(np.float32)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    highest = float(values.max())
    if image.mode == "F" and highest <= 255:
        full = 1.0 if highest <= 1 else 255.0
    else:
        full = float(max(65535, (1 << int(highest).bit_length()) - 1))
    values.clip(0, full, out=values)  # in place: a large picture is many bytes
    values *= 255 / full
    values += 0.5
    return Image.fromarray(values.astype(np.uint8))


def _to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """A profile that is damaged, of another colour space, or absurdly large is ignored, as viewers do."""
    if len(icc) > MAX_ICC_BYTES:
        return image
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        converted: Any = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    return converted if isinstance(converted, Image.Image) else image


def _reason(error: Exception) -> str:
    if isinstance(error, PictureError):
        return str(error)
    if isinstance(error, MemoryError):
        return "does not fit into this machine's memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    detail = " ".join(str(error).split())[:200]
    return f"is damaged ({detail or type(error).__name__})"
