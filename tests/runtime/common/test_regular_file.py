"""Opening a file that another program may replace."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.common.errors import UserError
from runtime.common.regular_file import open_regular
from runtime.model_file.files import read_bytes
from runtime.preprocess.decode import read_encoded
from tests.helpers import PATIENCE, start_python

READERS: dict[str, Callable[[Path], object]] = {
    "picture": read_encoded,
    "model": lambda path: read_bytes(path, 1000),
}


def test_a_regular_file_opens(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"data"


LEASE = """
import fcntl, os, signal, sys, time
file = os.open(sys.argv[1], os.O_RDWR)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
signal.sigwait([signal.SIGIO])
time.sleep(0.2)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
"""


def test_a_file_that_a_file_server_holds_is_opened_as_soon_as_it_is_free(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    with start_python("-c", LEASE, tmp_path / "file") as server:
        assert server.stdout
        if server.stdout.readline() != "held\n":
            pytest.skip("this file system has no leases")
        with open_regular(tmp_path / "file") as file:
            assert file.read() == b"data"


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_that_replaces_a_checked_file_is_an_error(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write a folder can replace a file between two calls: opening a pipe would wait for ever."""
    file, pipe = tmp_path / "file", tmp_path / "a.jpg"
    file.write_bytes(b"data")
    os.mkfifo(pipe)
    status = file.stat()
    monkeypatch.setattr(Path, "stat", lambda path: status)
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(READERS[reader], pipe)
        try:
            error = reading.exception(timeout=PATIENCE)
        finally:
            os.close(os.open(pipe, os.O_RDWR))  # ends a thread that waits
    assert isinstance(error, (OSError, UserError)) and "regular file" in str(error).lower()


def test_a_model_that_grows_after_its_check_is_not_read_beyond_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, path = tmp_path / "small", tmp_path / "model.onnx"
    small.write_bytes(b"data")
    path.write_bytes(bytes(2000))
    status = small.stat()
    monkeypatch.setattr(Path, "stat", lambda path: status)
    with pytest.raises(UserError, match="over 1,000 bytes"):
        read_bytes(path, 1000)
