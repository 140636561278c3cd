"""The formats that are read, by the first bytes of a file, and the names of others for the error."""

from collections.abc import Callable

from runtime.common.errors import UnsupportedPictureError

HEAD_BYTES = 64  # the first bytes of a file, which show its format

# Formats are named as Pillow names them. An MPO is a JPEG with more JPEGs behind it: the first is read.
READ = "JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC and AVIF"


def format_of(head: bytes) -> str:
    """Returns the format of a file that starts with `head`. Raises UnsupportedPictureError for all others."""
    for name, matches in _FORMATS.items():
        if matches(head):
            return name
    for name, matches in _REFUSED.items():
        if matches(head):
            raise UnsupportedPictureError(f"is {name}, and only {READ} are read: save it as JPEG or PNG")
    raise UnsupportedPictureError("is not a picture of a supported format")


def _starts(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magic)


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _brand(*brands: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[4:8] == b"ftyp" and head[8:12] in brands


def _is_avif(head: bytes) -> bool:
    """Whether the major brand is AVIF's, or any HEIF's with AVIF, and not HEIC, as a compatible brand."""
    if not _brand(*_ANY_HEIF)(head):
        return _brand(*_AVIF)(head)
    size = int.from_bytes(head[:4], "big")
    compatible = {head[at : at + 4] for at in range(16, min(size, len(head)), 4)}
    return not compatible.isdisjoint(_AVIF) and compatible.isdisjoint(_HEIC)


_AVIF = (b"avif", b"avis")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_ANY_HEIF = (b"mif1", b"msf1")
_FORMATS: dict[str, Callable[[bytes], bool]] = {
    "JPEG": _starts(b"\xff\xd8\xff"),
    "PNG": _starts(b"\x89PNG\r\n\x1a\n"),
    "WEBP": _is_webp,
    "AVIF": _is_avif,
    "HEIF": _brand(*_HEIC, *_ANY_HEIF),
    "TIFF": _starts(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "GIF": _starts(b"GIF87a", b"GIF89a"),
    "BMP": _starts(b"BM"),
}
# Rarely needed decoders get no untrusted data: comments in a PPM of 1 MB took 13 s.
_REFUSED: dict[str, Callable[[bytes], bool]] = {
    "a PPM, PGM, PBM or PAM picture": _starts(*(b"P%c" % kind for kind in b"1234567fF")),
    "a JPEG 2000 picture": _starts(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "a JPEG XL picture": _starts(b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
    "a PostScript or EPS file": _starts(b"%!PS", b"\xc5\xd0\xd3\xc6"),
    "a PDF file": _starts(b"%PDF"),
    "a Photoshop file": _starts(b"8BPS"),
    "a GIMP file": _starts(b"gimp xcf"),
    "an icon": _starts(b"\0\0\1\0", b"\0\0\2\0"),
    "an SVG drawing or another XML file": _starts(b"<svg", b"<?xml"),
    "a video": lambda head: head[4:8] == b"ftyp" or head.startswith((b"\x1a\x45\xdf\xa3", b"RIFF")),
}
