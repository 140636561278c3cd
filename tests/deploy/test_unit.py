"""The unit file, checked by systemd-analyze."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from pathlib import Path

from tests.helpers import ROOT
from tests.programs import require_program

UNIT = (ROOT / "deploy" / "vgg-edge.service").read_text()


def analyze(unit: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "vgg-edge.service").write_text(unit)
    command = [
        require_program("systemd-analyze", "systemd"),
        *arguments,
        str(folder / "vgg-edge.service"),
    ]
    return subprocess.run(command, capture_output=True, text=True)


def exposure(unit: str, folder: Path) -> tuple[float, str]:
    """The exposure level, 0 to 10, and its rating, by `systemd-analyze security`."""
    done = analyze(unit, folder, "security", "--offline=true")
    found = re.search(r"exposure level for vgg-edge.service: (\S+) (\S+)", done.stdout)
    assert found, done.stdout
    return float(found[1]), found[2]


def test_systemd_reports_no_problem(tmp_path: Path) -> None:
    unit = UNIT.replace("/opt/vgg-edge/bin/python", sys.executable)  # systemd checks that the program exists
    assert analyze(unit, tmp_path, "verify").stderr == ""
    misspelt = unit.replace("WatchdogSec", "WatchdogSecs")
    assert "Unknown key 'WatchdogSecs'" in analyze(misspelt, tmp_path, "verify").stderr


def test_the_exposure_is_rated_ok(tmp_path: Path) -> None:
    level, rating = exposure(UNIT, tmp_path)
    assert rating == "OK" and level < 2
    unprotected = re.sub(r"(?m)^(Protect|Restrict|System|Private|NoNew|Capab|Device).*\n", "", UNIT)
    assert exposure(unprotected, tmp_path)[1] != "OK"


def test_the_service_runs_no_code_from_its_state(tmp_path: Path) -> None:
    """With --picamera2 the environment sees Debian's packages, and then also those below $HOME: the state."""
    venv.create(tmp_path / "venv", system_site_packages=True, symlinks=True)
    python, environment = tmp_path / "venv" / "bin" / "python", {"HOME": str(tmp_path)}
    ask = (str(python), "-c", "import site; print(site.getusersitepackages())")
    packages = subprocess.run(ask, capture_output=True, text=True, env=environment).stdout.strip()
    Path(packages).mkdir(parents=True)
    (Path(packages) / "usercustomize.py").write_text("print('code from the state')")
    found = re.search(r"(?m)^ExecStart=/opt/vgg-edge/bin/python (.*) -m ", UNIT)
    assert found
    start = (str(python), *found[1].split(), "-c", "print('started')")
    done = subprocess.run(start, capture_output=True, text=True, env=environment)
    assert done.stdout == "started\n"
