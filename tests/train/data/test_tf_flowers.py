"""The download of a small archive from a local server."""

from __future__ import annotations

import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from runtime.common.file_lock import exclusive_lock
from train.data.tf_flowers import TF_FLOWERS, Archive, DownloadError, Unreachable, flower_photos


def packed(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


PHOTOS = {f"flower_photos/{label}/1.jpg": label.encode() * 90_000 for label in ("daisy", "roses")}


class Server:
    """Serves `data`, and only `cut` bytes of it in the first response; records the requested ranges."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.cut: int | None = None
        self.status = 200
        self.ranges: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requested = self.headers["Range"]
                server.ranges.append(requested)
                start = int(requested.removeprefix("bytes=").rstrip("-")) if requested else 0
                body = server.data[start:]
                self.send_response(server.status if server.status != 200 or not requested else 206)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: server.cut])
                server.cut = None

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.archive = replace(
            TF_FLOWERS,
            url=f"http://127.0.0.1:{self.http.server_port}/flower_photos.tgz",
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(packed(PHOTOS))
    yield server
    server.http.shutdown()


def test_a_second_command_does_not_download_the_archive_too(tmp_path: Path, server: Server) -> None:
    with (
        exclusive_lock(tmp_path / ".flower_photos.lock"),
        pytest.raises(DownloadError, match="another command downloads it now; wait"),
    ):
        flower_photos(tmp_path, server.archive)
    assert not server.ranges
    assert flower_photos(tmp_path, server.archive).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["flower_photos"]


def test_the_archive_is_downloaded_verified_and_unpacked_once(tmp_path: Path, server: Server) -> None:
    folder = flower_photos(tmp_path, server.archive)
    assert {str(p.relative_to(tmp_path)): p.read_bytes() for p in folder.rglob("*.jpg")} == PHOTOS
    assert [path.name for path in tmp_path.iterdir()] == ["flower_photos"]
    assert flower_photos(tmp_path, server.archive) == folder
    assert server.ranges == [None]


def test_an_interrupted_download_resumes(tmp_path: Path, server: Server) -> None:
    server.cut = 300
    with pytest.raises(DownloadError, match=r"interrupted at .* of "):
        flower_photos(tmp_path, server.archive)
    assert (flower_photos(tmp_path, server.archive) / "daisy" / "1.jpg").exists()
    assert server.ranges == [None, "bytes=300-"]


def test_a_download_with_another_hash_is_deleted(tmp_path: Path, server: Server) -> None:
    with pytest.raises(DownloadError, match="sha256"):
        flower_photos(tmp_path, replace(server.archive, sha256="0" * 64))
    assert not list(tmp_path.iterdir())


def test_an_archive_cannot_write_outside_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    server = Server(packed({"flower_photos/daisy/1.jpg": b"x", "../../outside.jpg": b"x"}))
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        flower_photos(cache, server.archive)
    assert not list(tmp_path.rglob("outside.jpg")) and not (cache / "flower_photos").exists()


def test_a_refusing_server_raises_unreachable(tmp_path: Path, server: Server) -> None:
    server.status = 403
    with pytest.raises(Unreachable, match="403"):
        flower_photos(tmp_path, server.archive)


def test_a_closed_port_raises_unreachable(tmp_path: Path, server: Server) -> None:
    server.http.server_close()
    with pytest.raises(Unreachable, match=r"refused|reset"):
        flower_photos(tmp_path, server.archive)


def test_a_silent_server_raises_unreachable_after_the_timeout(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        archive = Archive(f"http://127.0.0.1:{silent.getsockname()[1]}/x.tgz", 1, "0" * 64, "x")
        with pytest.raises(Unreachable, match=r"no answer in 0\.2 s"):
            flower_photos(tmp_path, archive, timeout=0.2)


def test_a_partial_file_that_cannot_be_read_raises_download_error(tmp_path: Path, server: Server) -> None:
    (tmp_path / "flower_photos.tgz.part").mkdir()
    with pytest.raises(DownloadError, match=r"tgz\.part: is not a regular file"):
        flower_photos(tmp_path, replace(server.archive, bytes=1))
