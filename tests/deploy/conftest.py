"""A disposable machine for the tests of deploy/."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.programs import require_program, skip_or_fail

MACHINE = Path(__file__).with_name("machine.sh")
INSTALL = ROOT / "deploy" / "install.sh"
BOOKWORM, TRIXIE = (
    f'PRETTY_NAME="Debian GNU/Linux {number} ({name})"\nID=debian\nVERSION_CODENAME={name}\n'
    for number, name in (("12", "bookworm"), ("13", "trixie"))
)


class Machine:
    """Layers of changes over this machine's files, on a tmpfs that disappears with the process `holder`."""

    def __init__(self, holder: int, folder: Path) -> None:
        self._script = ["nsenter", "--target", str(holder), "--mount", "unshare", "--mount", str(MACHINE)]
        self._folder = folder

    def run(self, below: str, changes: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs a command in a chroot on the layer `below`; the layer `changes` keeps its changes."""
        return self._run("run", str(self._folder / below), str(self._folder / changes), *map(str, command))

    def boot(
        self, below: str, files: Path, unit: str = "vgg-edge.service"
    ) -> subprocess.CompletedProcess[str]:
        """Boots systemd on the layer `below` with `files` copied to /, starts `unit`, waits for its end."""
        (files / "results").mkdir(exist_ok=True)
        return self._run("boot", str(self._folder / below), str(files), unit)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*self._script, *arguments]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with the files of this one."""
    require_program("systemd-nspawn", "systemd-container")
    if os.geteuid() != 0:
        skip_or_fail("the container needs root: run the tests as root")
    folder = tmp_path_factory.mktemp("machine")
    hold = f"mount -t tmpfs tmpfs {folder} && echo mounted && exec cat"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin and holder.stdout and holder.stdout.readline() == "mounted\n"
        yield Machine(holder.pid, folder)
        holder.stdin.close()


def install_command(os_release: str = BOOKWORM) -> str:
    """The shell command for deploy/install.sh on a 64-bit Raspberry Pi OS of this release."""
    script = shlex.quote(str(INSTALL))
    return f"{script} --architecture arm64 --os-release <(printf '%s' {shlex.quote(os_release)})"
