"""The contract inside .tflite and .onnx files, hostile ones included."""

from __future__ import annotations

import io
import tracemalloc
import zipfile

import pytest

from runtime.common.errors import ModelError
from runtime.model_file.formats import read_contract
from tests.runtime.conftest import CONTRACT


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_contract_raises_model_error(method: int) -> None:
    """Found by tests/fuzz: LZMA's own errors came through, and its file may ask for gigabytes."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", method) as archive:
        archive.writestr("contract.json", CONTRACT.to_json())
    with pytest.raises(ModelError, match="is compressed"):
        read_contract(b"\0\0\0\0TFL3" + zipped.getvalue(), "tflite")


def test_a_large_or_forged_zip_raises_model_error() -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("contract.json", b" " * 200_000_000)  # 200 kB here
    with pytest.raises(ModelError, match="over"):
        read_contract(b"\0\0\0\0TFL3" + zipped.getvalue(), "tflite")
    forged = zipped.getvalue().replace((200_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    with pytest.raises(ModelError):
        read_contract(b"\0\0\0\0TFL3" + forged, "tflite")


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\x72\xff\xff\xff\xff\x0f", b"\x08\x07", b"\x0b\x0c"])
def test_bytes_that_are_not_onnx_raise_model_error(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"truncated|holds no"):
        read_contract(data, "onnx")


@pytest.mark.parametrize(
    "data",
    [
        b"\x72\x80\x89\x7a" + 1_000_000 * b"\x1a\0",  # an entry of metadata_props, and what is in it
        1_000_000 * b"\x08\0",
        1_000_000 * b"\x72\0",
    ],
)
def test_an_onnx_file_with_a_million_fields_is_rejected_in_little_memory(data: bytes) -> None:
    """1.2 MB of them took 46 MB and 0.75 s, and a file may have a gigabyte."""
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="has more fields than"):
            read_contract(data, "onnx")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
