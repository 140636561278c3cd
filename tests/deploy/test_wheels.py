"""The table of wheels in docs/raspberry-pi.md, by resolving for each board what pyproject.toml asks for.

pip fits wheels to another platform by itself, but judges the markers of requirements by the Python that it
runs on; so it runs here with the board's markers. Nothing is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = ("litert", "onnx", "tflite", "camera", "web", "heic", "verify")


@dataclass(frozen=True)
class Board:
    name: str  # as in the table's first row
    python: str
    machine: str
    glibc: int  # 2.x: how new the wheels may be
    numpy: str  # Debian's, which picamera2 needs


BOOKWORM = Board("Bookworm, 64-bit", "3.11", "aarch64", 36, "1.24.2")
TRIXIE = Board("Trixie, 64-bit", "3.13", "aarch64", 41, "2.2.4")
BOOKWORM_32 = Board("Bookworm, 32-bit", "3.11", "armv7l", 36, "1.24.2")
BOARDS = (BOOKWORM, TRIXIE, BOOKWORM_32)

PIP = """
import json, sys
from pip._internal.cli.main import main
from pip._vendor.packaging import markers
board = {**markers.default_environment(), **json.loads(sys.argv[1])}
markers.default_environment = lambda: board
sys.exit(main(sys.argv[2:]))
"""


def environment(board: Board) -> dict[str, str]:
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


def asked(board: Board, *extras: str) -> dict[str, Requirement]:
    """What `pip install 'vgg-edge[extras]'` asks for on this board, by name; our own markers judged here."""
    texts = [*PROJECT["dependencies"]]
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    there = {**default_environment(), **environment(board)}
    all_asked = [Requirement(text) for text in texts]
    return {one.name: one for one in all_asked if one.marker is None or one.marker.evaluate(there)}


def resolve(board: Board, *arguments: str) -> dict[str, str]:
    """The wheels that pip would install, name: version; nothing where one is missing."""
    platforms = [f"manylinux_2_{minor}_{board.machine}" for minor in range(17, board.glibc + 1)]
    platforms += [f"manylinux2014_{board.machine}", f"linux_{board.machine}"]
    command = [sys.executable, "-c", PIP, json.dumps(environment(board)), "install", "--dry-run", "--quiet"]
    command += ["--ignore-installed", "--only-binary=:all:", "--implementation=cp", "--target=nowhere"]
    command += [f"--python-version={board.python}", "--report=-", "--no-cache-dir"]
    command += [f"--platform={platform}" for platform in platforms]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode:
        assert "No matching distribution found" in done.stderr, done.stderr  # and not: no network
        return {}
    found = json.loads(done.stdout)["install"]
    return {canonicalize_name(one["metadata"]["name"]): one["metadata"]["version"] for one in found}


def table() -> dict[str, dict[str, str]]:
    """The table of the page: board → package → "wheel" or "none"."""
    text = (ROOT / "docs/raspberry-pi.md").read_text(encoding="utf-8")
    block = text.split("<!-- table: wheels -->\n")[1].split("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
    (_, *boards), _, *packages = rows
    return {board: {row[0]: row[at] for row in packages} for at, board in enumerate(boards, 1)}


@pytest.mark.parametrize("board", BOARDS, ids=["bookworm", "trixie", "bookworm-32"])
def test_the_readme_says_what_has_wheels(board: Board) -> None:
    said = table()[board.name]
    assert set(said) == set(asked(BOOKWORM, *EXTRAS) | asked(TRIXIE, *EXTRAS))
    wanted = {**asked(TRIXIE, *EXTRAS), **asked(board, *EXTRAS)}
    lines = {name: f"{name}{wanted[name].specifier if name in wanted else ''}" for name in said}
    # On 64 bits all of it together, with Debian's numpy; on 32 bits each for itself, since numpy is missing.
    together = ["--no-deps"] if board == BOOKWORM_32 else [f"numpy=={board.numpy}"]
    wheels = [name for name in said if said[name] == "wheel"]
    found = resolve(board, *together, *(lines[name] for name in wheels))
    assert {canonicalize_name(name) for name in wheels} <= set(found)
    for name in set(said) - set(wheels):
        assert said[name] == "none" and resolve(board, "--no-deps", lines[name]) == {}
