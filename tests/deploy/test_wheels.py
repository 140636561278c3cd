"""The table of wheels in docs/raspberry-pi.md: pip resolves pyproject.toml's requirements for each board.

pip can select wheels for another platform, but it evaluates the markers of requirements for the Python that
it runs on. These tests give it the board's markers. Nothing is installed.
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
    name: str  # as in the head of the table
    python: str
    machine: str
    glibc: int  # 2.x, the newest that the board's wheels may need
    numpy: str  # Debian's version, which picamera2 needs


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


def markers_of(board: Board) -> dict[str, str]:
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
    """The requirements of `pip install 'vgg-edge[extras]'` on this board, by name."""
    texts = [*PROJECT["dependencies"]]
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    markers = {**default_environment(), **markers_of(board)}
    found = map(Requirement, texts)
    return {item.name: item for item in found if item.marker is None or item.marker.evaluate(markers)}


def resolve(board: Board, *arguments: str) -> dict[str, str]:
    """The wheels that pip would install, name → version; empty if one is missing."""
    platforms = [f"manylinux_2_{minor}_{board.machine}" for minor in range(17, board.glibc + 1)]
    platforms += [f"manylinux2014_{board.machine}", f"linux_{board.machine}"]
    command = [sys.executable, "-c", PIP, json.dumps(markers_of(board)), "install", "--dry-run", "--quiet"]
    command += ["--ignore-installed", "--only-binary=:all:", "--implementation=cp", "--target=nowhere"]
    command += [f"--python-version={board.python}", "--report=-", "--no-cache-dir"]
    command += [f"--platform={platform}" for platform in platforms]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode:
        assert "No matching distribution found" in done.stderr, (
            done.stderr
        )  # another error, such as no network
        return {}
    found = json.loads(done.stdout)["install"]
    return {canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in found}


def documented_wheels() -> dict[str, dict[str, str]]:
    """The documented table: board → package → "wheel" or "none"."""
    text = (ROOT / "docs/raspberry-pi.md").read_text(encoding="utf-8")
    block = text.split("<!-- table: wheels -->\n")[1].split("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
    (_, *boards), _, *packages = rows
    return {board: {row[0]: row[column] for row in packages} for column, board in enumerate(boards, 1)}


@pytest.mark.parametrize("board", BOARDS, ids=["bookworm", "trixie", "bookworm-32"])
def test_the_table_lists_every_requirement_of_the_runtime(board: Board) -> None:
    documented = documented_wheels()[board.name]
    assert set(documented) == set(requirements(BOOKWORM, *EXTRAS) | requirements(TRIXIE, *EXTRAS))
    assert set(documented.values()) <= {"wheel", "none"}


@pytest.mark.slow
@pytest.mark.parametrize("board", BOARDS, ids=["bookworm", "trixie", "bookworm-32"])
def test_the_documented_wheels_are_those_that_pip_finds(board: Board) -> None:
    """Needs the network."""
    documented = documented_wheels()[board.name]
    wanted = {**requirements(TRIXIE, *EXTRAS), **requirements(board, *EXTRAS)}
    lines = {name: f"{name}{wanted[name].specifier if name in wanted else ''}" for name in documented}
    # On 64 bits all together, with Debian's numpy; on 32 bits one by one, because numpy has no wheel.
    together = ["--no-deps"] if board == BOOKWORM_32 else [f"numpy=={board.numpy}"]
    wheels = [name for name in documented if documented[name] == "wheel"]
    found = resolve(board, *together, *(lines[name] for name in wheels))
    assert {canonicalize_name(name) for name in wheels} <= set(found)
    for name in set(documented) - set(wheels):
        assert resolve(board, "--no-deps", lines[name]) == {}
