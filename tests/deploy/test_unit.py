"""The unit, as systemd judges it, and as systemd runs it: in a container, with all its restrictions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from runtime import Classifier
from tests.deploy.conftest import Machine, need

UNIT = Path(__file__).parents[2] / "deploy" / "vgg-edge.service"
ALLOWED_BUT_NO_DRIVER = "No such device or address"


def rated(unit: str, folder: Path) -> tuple[float, str]:
    """Exposure, 0 to 10, and the word for it, by `systemd-analyze security`."""
    (folder / "vgg-edge.service").write_text(unit)
    command = [need("systemd-analyze", "systemd"), "security", "--offline=true", folder / "vgg-edge.service"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"exposure level for vgg-edge.service: (\S+) (\S+)", done.stdout)
    assert found, done.stdout
    return float(found[1]), found[2]


def test_systemd_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    def complaints(unit: str) -> str:
        (tmp_path / "vgg-edge.service").write_text(unit)
        command = [need("systemd-analyze", "systemd"), "verify", tmp_path / "vgg-edge.service"]
        return subprocess.run(command, capture_output=True, text=True).stderr

    # The program that it starts has to exist, and that is elsewhere here.
    unit = UNIT.read_text().replace("/opt/vgg-edge/bin/python", sys.executable)
    assert complaints(unit) == ""
    assert "Unknown key 'WatchdogSecs'" in complaints(unit.replace("WatchdogSec", "WatchdogSecs"))


def test_its_exposure_is_ok(tmp_path: Path) -> None:
    exposure, word = rated(UNIT.read_text(), tmp_path)
    assert word == "OK" and exposure < 2
    open_to_all = re.sub(
        r"(?m)^(Protect|Restrict|System|Private|NoNew|Capab|Device).*\n", "", UNIT.read_text()
    )
    assert rated(open_to_all, tmp_path)[1] != "OK"


def drop_in(folder: Path, *lines: str, until: str = "true") -> Path:
    """Files for the machine: the unit changed by these lines. It ends when the service has ended and `until`,
    a command in the state directory, is true."""
    place = folder / "etc/systemd/system/vgg-edge.service.d"
    place.mkdir(parents=True)
    keep = "cd /var/lib/vgg-edge; cp * /results; journalctl >/results/journal"
    service = (
        "[Service]",
        "Restart=no",
        "ExecStart=",
        *lines,
        f"ExecStopPost=+/bin/sh -c '{keep}; {until} && systemctl --no-block exit'",
    )
    (place / "test.conf").write_text("\n".join(service) + "\n")
    return folder


@pytest.fixture
def loads(tmp_path: Path) -> str:
    """The line of a unit that starts loads.py, with a photo."""
    (tmp_path / "loads.py").write_text(Path(__file__).with_name("loads.py").read_text())
    Image.new("RGB", (640, 480), "gold").save(tmp_path / "photo.png")
    return "ExecStart=/opt/vgg-edge/bin/python -P /loads.py /photo.png"


def test_both_engines_classify_under_its_restrictions(installed: Machine, loads: str, tmp_path: Path) -> None:
    installed.boot("installed", drop_in(tmp_path, f"{loads} litert onnx"))
    journal = (tmp_path / "results/journal").read_text()
    assert (tmp_path / "results/answers.json").exists(), journal
    found = json.loads((tmp_path / "results/answers.json").read_text())
    for engine in ("litert", "onnx"):
        here = Classifier(engine=engine)(tmp_path / "photo.png")
        assert found["answers"][engine]["label"] == here.label
        assert found["answers"][engine]["probability"] == pytest.approx(here.probability, abs=0.001)
    assert found["user"] != 0
    assert found["tries"] == {
        "write to /etc": "Read-only file system",
        "write to /opt": "Read-only file system",
        "write to the state": "allowed",
        "write to the cache": "allowed",
        "read a home": "Permission denied",
        "read the token": "Permission denied",
        "read its copy": "allowed",
        "write and execute": "Operation not permitted",
        "packets": "Address family not supported by protocol",
        "internet": "allowed",
        "namespaces": "Operation not permitted",
        "null": "allowed",
        "/dev/video0": ALLOWED_BUT_NO_DRIVER,
        "/dev/media0": ALLOWED_BUT_NO_DRIVER,
        "/dev/dma_heap/system": ALLOWED_BUT_NO_DRIVER,
        "/dev/another": "Operation not permitted",
    }
    assert "did not match anything" not in journal  # what systemd says of a name in DeviceAllow
    assert "processor information" not in journal


def test_without_cpuinfo_engines_do_not_know_their_processor(
    installed: Machine, loads: str, tmp_path: Path
) -> None:
    """Why the unit lacks ProcSubset=pid; and that a restriction too many is seen here."""
    installed.boot("installed", drop_in(tmp_path, f"{loads} onnx", "ProcSubset=pid"))
    assert "failed to parse processor information" in (tmp_path / "results/journal").read_text()


def test_the_watchdog_restarts_what_hangs(installed: Machine, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from runtime.notify import notify, watchdog_interval\n"
        "second = Path('first').exists()\n"
        "Path('second' if second else 'first').write_text(str(watchdog_interval()))\n"
        "notify('READY=1')\n"
        "if not second:\n"
        "    notify('WATCHDOG=1')\n"
        "    time.sleep(60)\n"
    )
    lines = ("Restart=on-failure", "RestartSec=0", "WatchdogSec=1")
    start = "ExecStart=/opt/vgg-edge/bin/python -P /hangs.py"
    installed.boot("installed", drop_in(tmp_path, start, *lines, until="test -e second"))
    assert "Watchdog timeout" in (tmp_path / "results/journal").read_text()
    assert (tmp_path / "results/second").read_text() == "0.5"


def test_the_page_answers_hangs_and_comes_back(installed: Machine, loads: str, tmp_path: Path) -> None:
    """The unit as it is, but for a shorter watchdog: asked, stopped so that it hangs, asked again."""
    units = tmp_path / "etc/systemd/system"
    (units / "vgg-edge.service.d").mkdir(parents=True)
    (units / "vgg-edge.service.d/test.conf").write_text(
        "[Unit]\nStartLimitIntervalSec=60\nStartLimitBurst=3\n[Service]\nWatchdogSec=3\nRestartSec=0\n"
    )
    (units / "ask.service").write_text(
        "[Unit]\nWants=vgg-edge.service\nAfter=vgg-edge.service\n"
        "[Service]\nType=oneshot\nExecStart=/usr/bin/python3 /ask.py\n"
        "ExecStopPost=/bin/sh -c 'journalctl >/results/journal; systemctl --no-block exit'\n"
    )
    (tmp_path / "ask.py").write_text(Path(__file__).with_name("ask.py").read_text())
    installed.boot("installed", tmp_path, "ask.service")
    journal = (tmp_path / "results/journal").read_text()
    assert (tmp_path / "results/asked.json").exists(), journal
    asked = json.loads((tmp_path / "results/asked.json").read_text())
    here = Classifier(engine="litert")(tmp_path / "photo.png")
    assert asked["labels"] == [here.label, here.label]
    assert asked["without the token"] == 401
    assert asked["restarts"] == "1" and asked["ended"] == "success" and asked["seconds to end"] < 5
    assert "Watchdog timeout" in journal
