"""Where the engine's files come from, and that others are refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from pathlib import Path

import pytest

from runtime.browser import engine_package
from runtime.browser.engine_package import PACKAGE, SCRIPT, WASM, EnginePackage, load_engine_package
from runtime.browser_page import main
from tests.helpers import RELEASED

FILES = {SCRIPT: b"script", WASM: b"code"}
EXPECTED = EnginePackage(FILES[SCRIPT], FILES[WASM])


@pytest.fixture(autouse=True)
def small_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package of two small files, and a cache of its own."""
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    monkeypatch.setattr(engine_package, "SHA256", sums)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def install_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program npm, alone on the PATH beside the system's."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_an_archive_and_a_folder_are_read(tmp_path: Path) -> None:
    assert load_engine_package(write_archive(tmp_path / "package.tgz", FILES)) == EXPECTED
    (tmp_path / "node_modules/dist").mkdir(parents=True)
    for name, data in FILES.items():
        (tmp_path / "node_modules/dist" / name).write_bytes(data)
    assert load_engine_package(tmp_path / "node_modules") == EXPECTED


def test_npm_downloads_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_archive(tmp_path / "stored.tgz", FILES)
    calls = tmp_path / "calls"
    # The last argument is the folder to write to.
    script = f'echo "$2" >>{calls}\nfor folder; do :; done\ncp {archive} "$folder/package.tgz"'
    install_npm(tmp_path / "bin", script, monkeypatch)
    assert load_engine_package() == load_engine_package() == EXPECTED
    assert calls.read_text().split() == [PACKAGE]


def test_a_user_without_a_home_folder_downloads_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    archive = write_archive(tmp_path / "stored.tgz", FILES)
    install_npm(tmp_path / "bin", f'for folder; do :; done\ncp {archive} "$folder/package.tgz"', monkeypatch)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert load_engine_package() == EXPECTED


def write_damaged(path: Path) -> None:
    """A .tgz that zlib cannot read to its end."""
    archive = gzip.decompress(write_archive(path, {**FILES, WASM: bytes(50_000)}).read_bytes())
    stream = zlib.compressobj(wbits=31)  # of gzip
    start = stream.compress(archive[:20_000]) + stream.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(start + b"\xff" * 1000)  # a block of a type that does not exist


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_damaged, "is not this npm package"),
        (lambda path: write_archive(path, {**FILES, WASM: b"other"}), "is not the one of"),
        (lambda path: write_archive(path, {SCRIPT: b"script"}), "is not this npm package"),
        (lambda path: path.write_bytes(b"no archive"), "is not this npm package"),
        (lambda path: path.mkdir(), "no such file"),
        (lambda path: None, "no such file"),
    ],
)
def test_other_files_are_refused_in_one_line(
    write: object, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "package.tgz")  # type: ignore[operator]
    arguments = ["--model", str(RELEASED), "--engine-package", str(tmp_path / "package.tgz")]
    assert main([*arguments, "--out", str(tmp_path / "page.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "package.tgz: " in line and reason in line.lower()
    assert not (tmp_path / "page.html").exists()


def test_a_missing_npm_and_a_failing_one_give_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--model", str(RELEASED), "--out", str(tmp_path / "page.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "npm is not installed" in line and "--engine-package" in line
    # The last byte is no UTF-8, such as in a message of Windows.
    install_npm(tmp_path / "bin", "printf 'no network \\377\\n' >&2; exit 1", monkeypatch)
    assert main(["--model", str(RELEASED), "--out", str(tmp_path / "page.html")]) == 2
    assert "no network" in capsys.readouterr().err.splitlines()[-1]
