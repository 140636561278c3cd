"""The format of a file by its first bytes."""

from __future__ import annotations

import pytest

from runtime.common.errors import UnsupportedPictureError
from runtime.preprocess.formats import format_of


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"P3\n#\n#\n", "PPM"),
        (b"P7\nWIDTH", "PAM"),
        (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"%!PS-Adobe-3.0 EP", "EPS"),
        (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"gimp xcf v011", "GIMP"),
        (b"\0\0\1\0\1\0", "icon"),
        (b"<svg xmlns=", "SVG"),
        (b'<?xml version="1', "SVG"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "video"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
    ],
)
def test_another_format_is_refused_by_its_name(head: bytes, name: str) -> None:
    with pytest.raises(UnsupportedPictureError, match=rf"^is an? .*{name}.*save it as JPEG or PNG"):
        format_of(head)


@pytest.mark.parametrize(
    ("brands", "format"),
    [
        (b"avif\0\0\0\0mif1", "AVIF"),
        (b"avis\0\0\0\0", "AVIF"),
        (b"mif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"msf1\0\0\0\0msf1avisavifmiaf", "AVIF"),
        (b"mif1\0\0\0\0mif1heicmiaf", "HEIF"),
        (b"mif1\0\0\0\0mif1heicavif", "HEIF"),
        (b"mif1\0\0\0\0mif1miaf", "HEIF"),
        (b"msf1\0\0\0\0hevc", "HEIF"),
        (b"heic\0\0\0\0mif1avif", "HEIF"),
        (b"heix\0\0\0\0", "HEIF"),
    ],
)
def test_the_brands_of_a_file_tell_avif_from_heic(brands: bytes, format: str) -> None:
    assert format_of((8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands) == format


def test_what_follows_the_brands_is_no_brand() -> None:
    assert format_of(b"\0\0\0\x18ftypmif1\0\0\0\0mif1miaf" + b"avif") == "HEIF"


def test_bytes_of_no_format_are_refused() -> None:
    for head in (b"", b"\0", b"P", b"\xff\xd8", b"hello"):
        with pytest.raises(UnsupportedPictureError, match="not a picture of a supported format"):
            format_of(head)
