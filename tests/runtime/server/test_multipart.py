"""The photo in a request's body, well-formed or not."""

from __future__ import annotations

import gc
import tracemalloc
from contextlib import suppress

import pytest

from runtime.server.errors import RequestRejected
from runtime.server.multipart import MAX_NAME_LENGTH, MAX_PADDING, MAX_PARTS, read_upload

FORM = 'multipart/form-data; boundary="x y"'
NOTE = 'form-data; name="note"'
FILE = 'form-data; name="photo"; filename="a"'


def form(*parts: tuple[str, bytes], end: bytes = b"--x y--\r\n") -> bytes:
    text = [f"--x y\r\nContent-Disposition: {head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts]
    return b"".join(text) + end


@pytest.mark.parametrize(
    "content_type", ["", "image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded"]
)
def test_raw_bytes_have_no_name(content_type: str) -> None:
    upload = read_upload(content_type, b"\xff\xd8\r\n\0")
    assert (upload.name, upload.data) == ("-", b"\xff\xd8\r\n\0")


def test_the_file_of_a_form_keeps_its_bytes_and_base_name() -> None:
    data = bytes(range(256)) + b"\r\n--x\r\n--x yes"  # nearly a boundary
    body = form((NOTE, b"hello"), ('form-data; name="photo"; filename="Blumen/grün 红.jpg"', data))
    upload = read_upload(FORM, body)
    assert (upload.name, upload.data) == ("grün 红.jpg", data)


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("C:\\\\photos\\\\a.jpg", "a.jpg"),
        ("../../a.jpg", "a.jpg"),
        ("", "-"),
        ("x" * 999, "x" * MAX_NAME_LENGTH),
    ],
)
def test_a_file_name_loses_its_folders_and_excess_length(sent: str, name: str) -> None:
    body = form((f'form-data; name="photo"; filename="{sent}"', b"data"))
    assert read_upload(FORM, body).name == name


@pytest.mark.parametrize(
    ("content_type", "body", "status", "fact"),
    [
        ("image/png", b"", 400, "empty"),
        ("application/json", b"{}", 415, "'application/json'"),
        ("text/plain; charset=utf-8", b"hello", 415, "'text/plain'"),
        ("multipart/form-data", b"--x--", 400, "boundary"),
        (FORM, b"", 400, "truncated"),
        (FORM, b"hello", 400, "form"),
        (FORM, form((FILE, b"data"), end=b""), 400, "truncated"),
        (FORM, form((NOTE, b"hello")), 400, "0 files"),
        (FORM, form((FILE, b"")), 400, "empty"),
        (FORM, form(*[(FILE, b"data")] * 2), 400, "2 files"),
        (FORM, form(*[(NOTE, b"data")] * (MAX_PARTS + 1)), 400, f"{MAX_PARTS} parts"),
        (FORM, b"\n" + form(*[(NOTE, b"data")] * (MAX_PARTS + 1)), 400, f"{MAX_PARTS} parts"),
        (FORM, form((FILE, b"\r\n--x yz" * (MAX_PARTS + 1))), 400, f"{MAX_PARTS} parts"),
        (FORM, form((FILE, b"\r\n--x y" + b" \t" * MAX_PADDING)), 400, "spaces after a delimiter"),
        (FORM, b"--x y" + b" " * MAX_PADDING + b"\r\n", 400, "spaces after a delimiter"),
    ],
)
def test_a_body_without_exactly_one_picture_is_rejected(
    content_type: str, body: bytes, status: int, fact: str
) -> None:
    with pytest.raises(RequestRejected, match=fact) as rejected:
        read_upload(content_type, body)
    assert rejected.value.status == status


def test_a_form_of_the_most_parts_is_accepted() -> None:
    body = form((FILE, b"data"), *[(NOTE, b"hello")] * (MAX_PARTS - 1))
    assert read_upload(FORM, body).data == b"data"


@pytest.mark.parametrize("end", [b"--x y--\r\n", b""])
def test_a_form_leaves_no_memory_to_the_garbage_collector(end: bytes) -> None:
    body = form((FILE, bytes(5_000_000)), end=end)
    gc.disable()
    tracemalloc.start()
    try:
        with suppress(RequestRejected):
            read_upload(FORM, body)
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
        gc.enable()


@pytest.mark.parametrize(
    "head", [f"{FILE}\r\nX: {'a' * 10**6}", FILE + "\r\nX: a" * 10**5, f'form-data; name="{"a" * 10**6}"']
)
def test_the_head_of_a_part_has_a_limit(head: str) -> None:
    """A parser without one takes a second of this process for each megabyte."""
    with pytest.raises(RequestRejected, match="header") as rejected:
        read_upload(FORM, form((head, b"data")))
    assert rejected.value.status == 400
