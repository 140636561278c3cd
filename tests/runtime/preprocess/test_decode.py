"""Reading a picture's bytes, and the choice of its decoder."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.common.errors import PictureError, UnsupportedPictureError
from runtime.inference.prefetch import DECODERS
from runtime.preprocess import decode
from runtime.preprocess.picture import read_picture
from tests.runtime.preprocess.pictures import PICTURE, SIZE, bomb, encode, furthest, resized


def test_heic_is_decoded() -> None:
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(PICTURE).save(file, quality=95)
    assert furthest(read_picture(file.getvalue(), SIZE), resized(PICTURE)) <= 12


def test_heic_without_pillow_heif_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(PictureError, match=r"pip install '\.\[heic\]'"):
        read_picture(b"\0\0\0\x18ftypheic" + bytes(100))


def test_an_error_names_the_path(tmp_path: Path) -> None:
    path = tmp_path / "фото 🌷.jpg"
    with pytest.raises(PictureError, match=r"фото 🌷\.jpg: no such file"):
        read_picture(path)
    with pytest.raises(PictureError, match="is a folder"):
        read_picture(str(tmp_path))
    with pytest.raises(PictureError, match="null"):
        read_picture("a\0b")
    path.write_bytes(encode(PICTURE, "PNG"))
    assert furthest(read_picture(path, SIZE), resized(PICTURE)) == 0
    with path.open("rb") as file:
        assert furthest(read_picture(file, SIZE), resized(PICTURE)) == 0


@pytest.fixture
def nobody() -> Iterator[None]:
    if os.name != "posix" or os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_without_permission_is_named(
    tmp_path: Path, nobody: None, request: pytest.FixtureRequest
) -> None:
    path = Path("/proc/1/environ") if os.geteuid() == 65534 else tmp_path / "secret.jpg"
    if os.geteuid() != 65534:
        path.write_bytes(encode(PICTURE, "PNG"))
        path.chmod(0)
    with pytest.raises(PictureError, match="permission denied"):
        read_picture(path)


def test_pillows_global_limits_are_unchanged() -> None:
    before = Image.MAX_IMAGE_PIXELS
    read_picture(encode(PICTURE, "JPEG"))
    assert before == Image.MAX_IMAGE_PIXELS
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(bomb(20_000, 20_000)))


@pytest.mark.parametrize("read", [read_picture, DECODERS.decode])
def test_an_object_that_is_no_source_is_named(read: Callable[..., object], tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    with (tmp_path / "a.png").open(encoding="latin-1") as file:
        for source, name in ((file, "TextIOWrapper"), (PICTURE, "Image"), (None, "NoneType"), (3, "int")):
            with pytest.raises(UnsupportedPictureError, match=f"^is of type {name}: give a path, bytes"):
                read(source, SIZE)


@pytest.mark.parametrize(
    ("pixels", "name"),
    [
        (np.zeros((40, 30, 3), np.float32), r"float32 \[40, 30, 3\]"),
        (np.zeros((3, 40, 30), np.uint8), r"uint8 \[3, 40, 30\]"),
        (np.zeros((1, 40, 30, 3), np.uint8), r"uint8 \[1, 40, 30, 3\]"),
        (np.zeros(5, np.uint8), r"uint8 \[5\]"),
    ],
)
def test_an_array_of_another_kind_is_named(pixels: NDArray[Any], name: str) -> None:
    with pytest.raises(UnsupportedPictureError, match=rf"^is an array {name}: give .* uint8 \[H, W, 3\]$"):
        read_picture(pixels)


class Endless(io.RawIOBase):
    """A JPEG's first bytes again and again."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return (b"\xff\xd8\xff\xe0" * (size // 4 + 1))[:size]


def test_an_endless_file_is_rejected_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_FILE_BYTES", 50_000_000)
    with pytest.raises(PictureError, match="is over 47 MiB"):
        read_picture(Endless())


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a file without an end")
def test_an_endless_file_of_no_format_is_rejected_at_its_first_bytes() -> None:
    with Path("/dev/zero").open("rb") as file:
        with pytest.raises(PictureError, match="not a picture of a supported format"):
            read_picture(file)
        assert file.tell() <= 2**20


@pytest.mark.skipif(os.name != "posix", reason="files of POSIX")
def test_pipes_and_devices_are_rejected_without_opening_them(tmp_path: Path) -> None:
    """The pipe would be waited for without an end."""
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("/dev/zero")
    for path in (tmp_path / "a.jpg", tmp_path / "b.jpg"):
        for read in (read_picture, decode.read_bytes):
            with pytest.raises(PictureError, match=rf"{path.name}: is a pipe or a device"):
                read(path)


@pytest.mark.skipif(os.name != "posix", reason="files of POSIX")
@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_the_path_of_an_open_file_is_read(path: str) -> None:
    code = (
        "import sys; from runtime.preprocess.picture import read_picture; "
        "print(read_picture(sys.argv[1]).shape)"
    )
    if not Path(path).exists():
        pytest.skip("not on this system")
    run = [sys.executable, "-c", code, path]
    done = subprocess.run(run, input=encode(PICTURE, "PNG"), capture_output=True, check=True)
    assert done.stdout.split() == [b"(224,", b"224,", b"3)"]


@pytest.mark.parametrize("name", ["AVIF", "WebP"])
def test_a_pillow_without_a_format_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is built without its library, or too old to have the plugin."""
    data = encode(PICTURE, name.upper())
    plugin = f"PIL.{'Avif' if name == 'AVIF' else name}ImagePlugin"
    monkeypatch.setattr(f"{plugin}.SUPPORTED", False)
    for _ in range(2):
        with pytest.raises(
            UnsupportedPictureError, match=f"^is {name.upper()}, .*`pip install --upgrade Pillow`"
        ):
            read_picture(data, SIZE)
        monkeypatch.setitem(sys.modules, plugin, None)


def test_avif_and_heic_of_the_brand_of_all_heif_are_decoded() -> None:
    for format, tolerance in (("AVIF", 6), ("HEIF", 12)):
        if format == "HEIF":
            pytest.importorskip("pillow_heif").register_heif_opener()
        data = encode(PICTURE, format, quality=100)
        assert data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"heic")
        assert furthest(read_picture(data[:8] + b"mif1" + data[12:], SIZE), resized(PICTURE)) <= tolerance
