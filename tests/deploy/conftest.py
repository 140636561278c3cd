"""What the tests of deploy/ run with: Debian's programs, and a machine on which no change stays."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT

MACHINE = Path(__file__).with_name("machine.sh")
BOOKWORM, TRIXIE = (
    f'PRETTY_NAME="Debian GNU/Linux {number} ({name})"\nID=debian\nVERSION_CODENAME={name}\n'
    for number, name in (("12", "bookworm"), ("13", "trixie"))
)


def need(program: str, package: str) -> str:
    """The path of a program. Without it a developer's test is skipped, and continuous integration's fails."""
    path = shutil.which(program)
    if path is None:
        _cannot(f"{program} is not installed: apt-get install {package}")
    return str(path)


def _cannot(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Machine:
    """Layers of changes over this machine's files, in a tmpfs that ends with the process that holds it."""

    def __init__(self, holder: int, folder: Path) -> None:
        self.enter = ["nsenter", "--target", str(holder), "--mount", "unshare", "--mount", str(MACHINE)]
        self.folder = folder

    def run(self, below: str, changes: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """A command in a chroot on the layer `below`; the layer `changes` keeps what it changes."""
        return self._run("run", str(self.folder / below), str(self.folder / changes), *map(str, command))

    def boot(
        self, below: str, files: Path, unit: str = "vgg-edge.service"
    ) -> subprocess.CompletedProcess[str]:
        """Starts `unit` by systemd with `files` laid over the layer `below`, and ends when it does."""
        (files / "results").mkdir(exist_ok=True)
        return self._run("boot", str(self.folder / below), str(files), unit)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.enter, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900
        )


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine of this one's files."""
    need("systemd-nspawn", "systemd-container")
    if os.geteuid() != 0:
        _cannot("a container needs root: run it as root, or see what continuous integration says")
    folder = tmp_path_factory.mktemp("machine")
    hold = f"mount -t tmpfs tmpfs {folder} && echo held && exec cat"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin and holder.stdout and holder.stdout.readline() == "held\n"
        yield Machine(holder.pid, folder)
        holder.stdin.close()


@pytest.fixture(scope="session")
def installed(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The same where deploy/install.sh has run, as if it were a Pi, in its layer "installed"."""
    done = machine.run("bare", "installed", "bash", "-c", f"{install()} --extras litert,onnx,web 2>&1")
    assert done.returncode == 0, done.stdout[-3000:]
    return machine


def install(os_release: str = BOOKWORM) -> str:
    """The shell's words for deploy/install.sh on a 64-bit Raspberry Pi OS of this release."""
    return f"{ROOT}/deploy/install.sh --architecture arm64 --os-release <(printf '%s' '{os_release}')"
