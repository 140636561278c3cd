"""The tf_flowers photos: 3,670 pictures of five flowers, under Creative Commons attribution licences.

LICENSE.txt in the archive names the photographers. The archive is downloaded once into the user's cache and
verified against the hash that TensorFlow Datasets publishes.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath

from runtime.common.errors import UserError
from runtime.common.file_lock import exclusive_lock
from train.data.dataset import HashError, file_sha256
from train.progress import Progress

BLOCK = 1 << 20  # bytes read at a time
TIMEOUT = 10.0  # seconds without a connection or without a byte


@dataclass(frozen=True)
class Archive:
    """A .tgz file with one folder `name` of class folders; size and hash as in TensorFlow Datasets."""

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
    """The server of the archive cannot be reached; the text is the reason."""


class DownloadError(UserError):
    """A download that was interrupted or has the wrong hash."""


def flower_photos(cache: Path, archive: Archive = TF_FLOWERS, timeout: float = TIMEOUT) -> Path:
    """The folder of class folders, downloaded and unpacked into `cache` unless it exists already.

    Raises Unreachable if the server does not answer within `timeout` seconds; DownloadError if the download
    is interrupted, after which the next call resumes it, if its hash is wrong, or if another command
    downloads it now.
    """
    folder = cache / archive.name
    if folder.is_dir():
        return folder
    try:
        with exclusive_lock(cache / f".{archive.name}.lock"):
            if not folder.is_dir():  # another command may have unpacked it since the first check
                _fetch(archive, cache, folder, timeout)
    except BlockingIOError:
        raise DownloadError(
            f"{archive.url}: another command downloads it now; wait until it has printed its photos, then "
            "start this command again"
        ) from None
    return folder


def _fetch(archive: Archive, cache: Path, folder: Path, timeout: float) -> None:
    """Download, verify and unpack the archive."""
    packed = cache / f"{archive.name}.tgz"
    if not packed.exists():
        partial = packed.with_name(f"{packed.name}.part")
        _download(archive, partial, timeout)
        _verify(archive, partial)
        partial.rename(packed)
    _unpack(packed, folder)
    packed.unlink()


def _download(archive: Archive, partial: Path, timeout: float) -> None:
    """Append the missing bytes to the file `partial`."""
    done = partial.stat().st_size if partial.exists() else 0
    if done >= archive.bytes:
        return
    response = _open(archive.url, done, timeout)
    if response.status != 206:  # the server sends the whole file
        done = 0
    with (
        response,
        partial.open("ab" if done else "wb") as file,
        Progress(f"download {archive.name}", archive.bytes >> 20, "MiB") as progress,
    ):
        progress.step(done >> 20)
        reason = "the server closed the connection"
        try:
            while block := response.read(BLOCK):
                file.write(block)
                progress.step((done + len(block) >> 20) - (done >> 20))
                done += len(block)
            file.flush()
            os.fsync(file.fileno())
        except (OSError, HTTPException) as error:
            reason = str(error)
    if done < archive.bytes:
        raise DownloadError(
            f"{archive.url}: interrupted at {done / 1e6:.1f} of {archive.bytes / 1e6:.1f} MB ({reason}); "
            "start the same command again to resume"
        )


def _open(url: str, start: int, timeout: float) -> HTTPResponse:
    """Request the file from byte `start` on. Raises Unreachable."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
    except TimeoutError:
        raise Unreachable(f"no answer in {timeout:g} s") from None
    except urllib.error.HTTPError as error:
        raise Unreachable(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise Unreachable(f"no answer in {timeout:g} s") from None
        raise Unreachable(str(getattr(error.reason, "strerror", None) or error.reason)) from None
    except (OSError, HTTPException) as error:
        raise Unreachable(str(error)) from None
    return response


def _verify(archive: Archive, partial: Path) -> None:
    """Raise DownloadError and delete the file unless it has the published hash."""
    try:
        found = file_sha256(partial)
    except HashError as error:
        raise DownloadError(f"{partial}: {error}; delete it and try again") from None
    if found != archive.sha256:
        partial.unlink()
        raise DownloadError(
            f"{archive.url}: its sha256 is {found}, not {archive.sha256}; the download was deleted: try "
            "again, or give a folder of photos"
        )


def _plain_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files and folders of the archive. Raises TarError for a link, a device, or a path that leads out:
    Python before 3.10.12 and 3.11.4, as in Debian 12, has no filter for them.
    """
    for member in tar:
        path = PurePosixPath(member.name)
        if not (member.isfile() or member.isdir()) or path.is_absolute() or ".." in path.parts:
            raise tarfile.TarError(f"{member.name} is not a file or folder inside the archive")
        yield member


def _unpack(packed: Path, folder: Path) -> None:
    """Unpack the archive so that `folder` is complete or absent."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        with tarfile.open(packed) as tar:
            if hasattr(tarfile, "data_filter"):  # it also removes special permissions
                tar.extraction_filter = tarfile.data_filter
            tar.extractall(partial, _plain_members(tar))
        (partial / folder.name).rename(folder)
    except (OSError, tarfile.TarError) as error:
        raise DownloadError(
            f"{packed}: cannot be unpacked ({error}); delete the file and try again"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
