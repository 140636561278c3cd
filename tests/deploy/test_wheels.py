"""The table of wheels in docs/raspberry-pi.md: pip resolves pyproject.toml's requirements for each board.

pip can select wheels for another platform, but it evaluates the markers of requirements for the Python that
it runs on. These tests give it the board's markers. Nothing is installed.
"""

from __future__ import annotations

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from deploy.lock import (
    BASE,
    BOOKWORM,
    BUILD,
    EXTRAS,
    LOCK,
    LOCKED_BOARDS,
    TRIXIE,
    Board,
    markers_of,
    name_of,
    requirements,
    resolve,
)
from tests.helpers import ROOT

DOCUMENTED_EXTRAS = (*EXTRAS, "openvino", "tflite")
BOOKWORM_32 = Board("Bookworm, 32-bit", "3.11", "armv7l", 36, "1.24.2")
BOARDS = (BOOKWORM, TRIXIE, BOOKWORM_32)
LOCKED_LINE = re.compile(
    r"(?P<requirement>[a-z0-9-]+==\S+(?: ; python_version == \"[\d.]+\")?)"
    r"(?: --hash=sha256:[0-9a-f]{64})+  # (?P<extras>[a-z0-9 ]+)"
)


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
    assert set(documented) == set(
        requirements(BOOKWORM, *DOCUMENTED_EXTRAS) | requirements(TRIXIE, *DOCUMENTED_EXTRAS)
    )
    assert set(documented.values()) <= {"wheel", "none"}


@pytest.mark.slow
@pytest.mark.parametrize("board", BOARDS, ids=["bookworm", "trixie", "bookworm-32"])
def test_the_documented_wheels_are_those_that_pip_finds(board: Board) -> None:
    """Needs the network."""
    documented = documented_wheels()[board.name]
    wanted = {**requirements(TRIXIE, *DOCUMENTED_EXTRAS), **requirements(board, *DOCUMENTED_EXTRAS)}
    lines = {name: f"{name}{wanted[name].specifier if name in wanted else ''}" for name in documented}
    # On 64 bits all together, with Debian's numpy; on 32 bits one by one, because numpy has no wheel.
    together = ["--no-deps"] if board == BOOKWORM_32 else [f"numpy=={board.numpy}"]
    wheels = [name for name in documented if documented[name] == "wheel"]
    found = resolve(board, *together, *(lines[name] for name in wheels))
    assert {canonicalize_name(name) for name in wheels} <= set(map(name_of, found))
    for name in set(documented) - set(wheels):
        assert resolve(board, "--no-deps", lines[name]) == []


def locked(board: Board) -> dict[str, tuple[Version, set[str]]]:
    """The locked version of each package on this board, and the extras that need it."""
    packages = {}
    for line in LOCK.read_text(encoding="utf-8").splitlines()[1:]:
        match = LOCKED_LINE.fullmatch(line)
        assert match, line
        item = Requirement(match["requirement"])
        if item.marker is None or item.marker.evaluate(markers_of(board)):
            assert item.name not in packages
            packages[item.name] = Version(str(item.specifier)[2:]), set(match["extras"].split())
    return packages


@pytest.mark.parametrize("board", LOCKED_BOARDS, ids=lambda board: f"{board.python}-{board.machine}")
def test_the_lock_file_has_the_packages_that_each_extra_requires(board: Board) -> None:
    """Run `python deploy/lock.py` after a change of the requirements."""
    packages = locked(board)
    assert BUILD in packages["setuptools"][1]
    for extra in EXTRAS:
        for name, item in requirements(board, extra).items():
            version, extras = packages[canonicalize_name(name)]
            assert version in item.specifier and extras & {extra, BASE}


@pytest.mark.slow
@pytest.mark.parametrize("board", LOCKED_BOARDS, ids=lambda board: f"{board.python}-{board.machine}")
def test_pip_accepts_the_lock_file_with_all_that_its_packages_require(board: Board) -> None:
    """Needs the network. pip stops for a package whose hash or dependency the file lacks."""
    packages = locked(board)
    found = resolve(board, "--require-hashes", "--requirement", str(LOCK))
    assert set(map(name_of, found)) == set(packages)
