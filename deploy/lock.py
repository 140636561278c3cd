"""Writes deploy/requirements.lock: the packages that deploy/install.sh installs, with versions and hashes.

    python deploy/lock.py

pip resolves the requirements of pyproject.toml for each supported system, on 64-bit Arm and, for the tests,
on x86. Nothing is installed. Each line of the file ends with the extras that need the package.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = HERE / "requirements.lock"
EXTRAS = ("litert", "onnx", "camera", "mqtt", "web", "heic", "verify")
# Tags of the packages that every installation needs: the dependencies, and the packages that build a clone.
BASE, BUILD = "base", "build"
BUILD_REQUIREMENT = "setuptools>=77"  # the first that knows the licence field of pyproject.toml

# pip selects wheels for another platform, but evaluates markers for the Python that it runs on.
PIP = """
import json, sys
from pip._internal.cli.main import main
from pip._vendor.packaging import markers
board = {**markers.default_environment(), **json.loads(sys.argv[1])}
markers.default_environment = lambda: board
sys.exit(main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Board:
    """A system that packages are resolved for."""

    name: str  # as in the head of the table in docs/raspberry-pi.md
    python: str
    machine: str
    glibc: int  # 2.x, the newest that the board's wheels may need
    numpy: str  # Debian's version, which picamera2 needs


BOOKWORM = Board("Bookworm, 64-bit", "3.11", "aarch64", 36, "1.24.2")
TRIXIE = Board("Trixie, 64-bit", "3.13", "aarch64", 41, "2.2.4")
LOCKED_BOARDS = (
    BOOKWORM,
    TRIXIE,
    Board("Bookworm, x86", "3.11", "x86_64", 36, "1.24.2"),
    Board("Trixie, x86", "3.13", "x86_64", 41, "2.2.4"),
)


def markers_of(board: Board) -> dict[str, str]:
    """Returns the values of environment markers on a board."""
    full = f"{board.python}.2"
    return {
        "implementation_name": "cpython",
        "implementation_version": full,
        "os_name": "posix",
        "platform_machine": board.machine,
        "platform_system": "Linux",
        "platform_python_implementation": "CPython",
        "python_full_version": full,
        "python_version": board.python,
        "sys_platform": "linux",
    }


def requirements(board: Board, *extras: str) -> dict[str, Requirement]:
    """Returns the requirements of `pip install 'vgg-edge[extras]'` on this board, by name."""
    texts = [*PROJECT["dependencies"]]
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    return {item.name: item for item in _that_apply(texts, board)}


def resolve(board: Board, *arguments: str) -> list[dict[str, Any]]:
    """Returns the wheels that pip would install, as in its report; empty if one is missing."""
    platforms = [f"manylinux_2_{minor}_{board.machine}" for minor in range(17, board.glibc + 1)]
    platforms += [f"manylinux2014_{board.machine}", f"linux_{board.machine}"]
    command = [sys.executable, "-c", PIP, json.dumps(markers_of(board)), "install", "--dry-run", "--quiet"]
    command += ["--ignore-installed", "--only-binary=:all:", "--implementation=cp", "--target=nowhere"]
    command += [f"--python-version={board.python}", "--report=-", "--no-cache-dir"]
    command += [f"--platform={platform}" for platform in platforms]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode:
        if "No matching distribution found" not in done.stderr:
            raise RuntimeError(done.stderr)  # such as no network
        return []
    installed: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return installed


def name_of(item: Mapping[str, Any]) -> str:
    """Returns the normalized name of a package in pip's report."""
    return canonicalize_name(item["metadata"]["name"])


def version_of(item: Mapping[str, Any]) -> str:
    """Returns the version of a package in pip's report."""
    return str(item["metadata"]["version"])


def _that_apply(texts: list[str], board: Board) -> Iterator[Requirement]:
    markers = {**default_environment(), **markers_of(board), "extra": ""}
    for item in map(Requirement, texts):
        if item.marker is None or item.marker.evaluate(markers):
            yield item


def _resolve_board(board: Board) -> list[dict[str, Any]]:
    """Returns packages that work with Debian's numpy, and the newest numpy that works with them."""
    wanted = [str(item).split(";")[0] for item in requirements(board, *EXTRAS).values()] + [BUILD_REQUIREMENT]
    with_debian = resolve(board, *wanted, f"numpy=={board.numpy}")
    pinned = [f"{name_of(item)}=={version_of(item)}" for item in with_debian if name_of(item) != "numpy"]
    found = resolve(board, *pinned, "numpy")
    if not with_debian or not found:
        raise RuntimeError(f"{board.name}: pip finds no wheels for {', '.join(wanted)}")
    return found


def _extras_of(board: Board, found: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Returns the extras that need a package, directly or by another one, by the package's name."""
    needed_by = {name_of(item): item["metadata"].get("requires_dist", []) for item in found}
    groups = {BASE: requirements(board), BUILD: {"setuptools": None}}
    groups |= {extra: requirements(board, extra) for extra in EXTRAS}
    extras: dict[str, list[str]] = defaultdict(list)
    for extra, names in groups.items():
        waiting, seen = [canonicalize_name(name) for name in names], set[str]()
        while waiting:
            if (name := waiting.pop()) not in seen:
                seen.add(name)
                waiting += [canonicalize_name(item.name) for item in _that_apply(needed_by[name], board)]
        for name in seen:
            extras[name].append(extra)
    return extras


def lock_lines() -> list[str]:
    """Returns the lines of the lock file."""
    hashes: dict[tuple[str, str], set[str]] = defaultdict(set)  # by name and version
    pythons: dict[tuple[str, str], set[str]] = defaultdict(set)
    extras: dict[tuple[str, str], set[str]] = defaultdict(set)
    for board in LOCKED_BOARDS:
        found = _resolve_board(board)
        needed = _extras_of(board, found)
        for item in found:
            key = name_of(item), version_of(item)
            hashes[key].add(item["download_info"]["archive_info"]["hashes"]["sha256"])
            pythons[key].add(board.python)
            extras[key] |= set(needed[key[0]])
    lines = []
    for name, version in sorted(hashes):
        key = name, version
        marker = "" if len(pythons[key]) > 1 else f' ; python_version == "{min(pythons[key])}"'
        listed = " ".join(f"--hash=sha256:{value}" for value in sorted(hashes[key]))
        tags = [BASE] if BASE in extras[key] else sorted(extras[key])
        lines.append(f"{name}=={version}{marker} {listed}  # {' '.join(tags)}")
    return lines


def main() -> None:
    """Writes the lock file."""
    about = "# Written by deploy/lock.py: packages for Python 3.11 and 3.13 on 64-bit Arm and x86.\n"
    LOCK.write_text(about + "".join(f"{line}\n" for line in lock_lines()), encoding="utf-8")


if __name__ == "__main__":
    main()
