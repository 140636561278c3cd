"""The photo in a request's body, well-formed or not."""

from __future__ import annotations

import pytest

from runtime.server.auth import RequestRejected
from runtime.server.multipart import MAX_NAME, MAX_PARTS, read_upload

FORM = 'multipart/form-data; boundary="x y"'


def form(*parts: tuple[str, bytes], end: bytes = b"--x y--\r\n") -> bytes:
    text = [f"--x y\r\nContent-Disposition: {head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts]
    return b"".join(text) + end


@pytest.mark.parametrize(
    "content_type", ["", "image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded"]
)
def test_bare_bytes_have_no_name(content_type: str) -> None:
    photo = read_upload(content_type, b"\xff\xd8\r\n\0")
    assert (photo.name, photo.data) == ("-", b"\xff\xd8\r\n\0")


def test_the_file_of_a_form() -> None:
    data = bytes(range(256)) + b"\r\n--x\r\n--x yes"  # nearly a boundary
    body = form(
        ('form-data; name="note"', b"hello"),
        ('form-data; name="photo"; filename="Blumen/grün 红.jpg"', data),
    )
    photo = read_upload(FORM, body)
    assert (photo.name, photo.data) == ("grün 红.jpg", data)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("C:\\\\photos\\\\a.jpg", "a.jpg"),
        ("../../a.jpg", "a.jpg"),
        ("", "-"),
        ("x" * 999, "x" * MAX_NAME),
    ],
)
def test_a_name_is_one_to_show(sent: str, shown: str) -> None:
    body = form((f'form-data; name="photo"; filename="{sent}"', b"data"))
    assert read_upload(FORM, body).name == shown


@pytest.mark.parametrize(
    ("content_type", "body", "status", "reason"),
    [
        ("image/png", b"", 400, "is empty"),
        ("application/json", b"{}", 415, "'application/json': send a picture"),
        ("text/plain; charset=utf-8", b"hello", 415, "'text/plain': send a picture"),
        ("multipart/form-data", b"--x--", 400, "without a boundary"),
        (FORM, b"", 400, "is cut off"),
        (FORM, b"hello", 400, "is no form"),
        (FORM, form(('form-data; name="photo"; filename="a"', b"data"), end=b""), 400, "is cut off"),
        (FORM, form(('form-data; name="note"', b"hello")), 400, "holds 0 files"),
        (FORM, form(('form-data; name="photo"; filename="a"', b"")), 400, "is empty"),
        (FORM, form(*[('form-data; name="photo"; filename="a"', b"data")] * 2), 400, "holds 2 files"),
        (FORM, form(*[('form-data; name="note"', b"data")] * (MAX_PARTS + 1)), 400, "parts"),
    ],
)
def test_what_is_refused(content_type: str, body: bytes, status: int, reason: str) -> None:
    with pytest.raises(RequestRejected, match=reason) as refused:
        read_upload(content_type, body)
    assert refused.value.status == status
