"""The tf_flowers photos: 3,670 pictures of five flowers, under Creative Commons by-attribution licences
(LICENSE.txt in the archive names each photographer). Fetched once into the user's cache and checked
against the published hash.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tarfile
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from runtime.common.errors import UserError
from train.progress import Progress

BLOCK = 1 << 20
STALLED = 30.0  # seconds without a byte before a download counts as broken off


@dataclass(frozen=True)
class Archive:
    """A .tgz of class folders under one folder `name`, as TensorFlow Datasets records its size and hash."""

    url: str
    bytes: int
    sha256: str
    name: str


TF_FLOWERS = Archive(
    url="https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
    bytes=228_813_984,
    sha256="4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
    name="flower_photos",
)


class Unreachable(Exception):
    """The archive's server cannot be reached; the text says why."""


class DownloadError(UserError):
    """A download that broke off, or that is not what it should be."""


def flower_photos(cache: Path, archive: Archive = TF_FLOWERS, timeout: float = 5.0) -> Path:
    """The folder of class folders, downloaded and unpacked into `cache` unless it is there already.

    Raises Unreachable when the server does not answer within `timeout` seconds; DownloadError when the
    download breaks off, which leaves what has come for the next try to go on from, or when its hash is wrong.
    """
    folder = cache / archive.name
    if folder.is_dir():
        return folder
    packed = cache / f"{archive.name}.tgz"
    if not packed.exists():
        _download(archive, packed, timeout)
    _unpack(packed, folder)
    packed.unlink()
    return folder


def _download(archive: Archive, packed: Path, timeout: float) -> None:
    partial = packed.with_name(f"{packed.name}.part")
    have = partial.stat().st_size if partial.exists() else 0
    if have < archive.bytes:
        response = _open(archive.url, have, timeout)
        resumed = response.status == 206
        with (
            response,
            partial.open("ab" if resumed else "wb") as file,
            Progress(f"download {archive.name}", archive.bytes >> 20, "MiB") as progress,
        ):
            done = have if resumed else 0
            progress.step(done >> 20)
            try:
                while block := response.read(BLOCK):
                    file.write(block)
                    progress.step((done + len(block) >> 20) - (done >> 20))
                    done += len(block)
                file.flush()
                os.fsync(file.fileno())
            except (OSError, HTTPException) as error:
                raise DownloadError(_broke_off(archive, done, str(error))) from None
        if done < archive.bytes:
            raise DownloadError(_broke_off(archive, done, "the server closed the connection"))
    with partial.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != archive.sha256:
        partial.unlink()
        raise DownloadError(
            f"{archive.url}: its sha256 is {digest.hexdigest()}, not {archive.sha256}; "
            "thrown away: try again, or give a folder of photos"
        )
    partial.rename(packed)


def _open(url: str, start: int, timeout: float) -> HTTPResponse:
    """Ask for the file from byte `start` on. On a thread of its own, because looking up a name heeds no
    timeout.
    """
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    answer: list[HTTPResponse | str] = []

    def ask() -> None:
        try:
            answer.append(urllib.request.urlopen(request, timeout=STALLED))
        except urllib.error.HTTPError as error:
            answer.append(f"HTTP {error.code} {error.reason}")
        except urllib.error.URLError as error:
            cause = error.reason
            unknown = isinstance(cause, socket.gaierror)
            answer.append(
                "its name cannot be looked up" if unknown else str(getattr(cause, "strerror", 0) or cause)
            )
        except (OSError, HTTPException) as error:
            answer.append(str(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    response = answer[0] if answer else f"no answer in {timeout:g} s"
    if isinstance(response, str):
        raise Unreachable(response)
    return response


def _unpack(packed: Path, folder: Path) -> None:
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        with tarfile.open(packed) as tar:
            tar.extractall(partial, filter="data")
        (partial / folder.name).rename(folder)
    except (OSError, tarfile.TarError) as error:
        raise DownloadError(f"{packed}: cannot be unpacked ({error}); remove it and try again") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _broke_off(archive: Archive, done: int, reason: str) -> str:
    return (
        f"{archive.url}: broke off at {done / 1e6:.1f} of {archive.bytes / 1e6:.1f} MB ({reason}); "
        "the same command goes on from there"
    )
