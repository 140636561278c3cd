"""The service, installed by deploy/install.sh and run by systemd in a container, with all restrictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from runtime import Classifier
from tests.deploy.conftest import INSTALL, Machine, install_command
from tests.helpers import ROOT

pytestmark = pytest.mark.slow

EXTRAS = "--extras litert,onnx,web"
ALLOWED_BUT_NO_DRIVER = "No such device or address"


@pytest.fixture(scope="module")
def installed(machine: Machine) -> tuple[Machine, str]:
    """The machine with the service in its layer "installed", and what install.sh printed."""
    done = machine.run("bare", "installed", "bash", "-c", f"{install_command()} {EXTRAS} 2>&1")
    assert done.returncode == 0, done.stdout[-3000:]
    return machine, done.stdout


def add_drop_in(folder: Path, *lines: str, until: str = "true") -> Path:
    """Adds `lines` to the unit in `folder`, files for the machine.

    The container stops when the service has ended and `until`, a command in the state directory, succeeds.
    """
    drop_ins = folder / "etc/systemd/system/vgg-edge.service.d"
    drop_ins.mkdir(parents=True)
    save_results = "cd /var/lib/vgg-edge/state; cp * /results; journalctl >/results/journal"
    service = (
        "[Service]",
        "Restart=no",
        "ExecStart=",
        *lines,
        f"ExecStopPost=+/bin/sh -c '{save_results}; {until} && systemctl --no-block exit'",
    )
    (drop_ins / "test.conf").write_text("\n".join(service) + "\n")
    return folder


@pytest.fixture
def start_line(tmp_path: Path) -> str:
    """The line of a unit that starts restricted_service.py, with a photo."""
    script = Path(__file__).with_name("restricted_service.py")
    (tmp_path / script.name).write_text(script.read_text())
    Image.new("RGB", (640, 480), "gold").save(tmp_path / "photo.png")
    return f"ExecStart=/opt/vgg-edge/bin/python -P -s /{script.name} /photo.png"


def test_install_prints_the_next_steps(installed: tuple[Machine, str]) -> None:
    _, printed = installed
    steps = printed.partition("Next steps:")[2]
    for fact in (
        "sudo cat /etc/vgg-edge/token",
        "/etc/vgg-edge/serve.conf",
        "journalctl -u vgg-edge",
        ":8080",
    ):
        assert fact in steps
    assert "http://127.0.0.1:8080" in printed


def test_a_second_run_keeps_the_settings_and_uninstall_keeps_the_pictures(
    installed: tuple[Machine, str],
) -> None:
    machine, _ = installed
    script = f"""
        set -e
        stat -c '%a %U' /etc/vgg-edge/token /etc/vgg-edge/serve.conf
        find /opt/vgg-edge /etc/vgg-edge /var/lib/vgg-edge -not -type l \\( -perm /022 -or -not -user root \\)
        ls -l /etc/systemd/system/multi-user.target.wants/vgg-edge.service
        ! /opt/vgg-edge/bin/python -c 'import tensorflow' 2>/dev/null
        cp /etc/vgg-edge/token /token
        echo '# mine' >>/etc/vgg-edge/serve.conf
        chmod 644 /etc/vgg-edge/serve.conf
        chown -R vgg-edge /var/lib/vgg-edge
        {install_command()} {EXTRAS} >&2
        cmp /token /etc/vgg-edge/token
        grep mine /etc/vgg-edge/serve.conf
        stat -c '%a %U' /etc/vgg-edge/serve.conf /var/lib/vgg-edge /var/lib/vgg-edge/models
        install -d -o vgg-edge /var/lib/vgg-edge/state
        '{INSTALL}' --uninstall
        getent passwd vgg-edge | cut -d: -f1
        rm -r /var/lib/vgg-edge/state
        '{INSTALL}' --uninstall
        ls -d /opt/vgg-edge /etc/vgg-edge /etc/systemd/system/vgg-edge.service /var/lib/vgg-edge \
            /etc/systemd/system/multi-user.target.wants/vgg-edge.service 2>/dev/null || true
        ! getent passwd vgg-edge
    """
    done = machine.run("installed", "uninstalled", "bash", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    token, settings, wanted, mine, *modes, first, kept, user, second, left = done.stdout.splitlines()
    assert token == settings == "600 root"
    assert modes == ["600 root", "755 root", "755 root"]
    assert "user vgg-edge" in kept and "/var/lib/vgg-edge/state" in kept and user == "vgg-edge"
    assert wanted.endswith("vgg-edge.service -> /etc/systemd/system/vgg-edge.service")
    assert mine == "# mine"
    assert first == second and "/var/lib/vgg-edge" in first
    assert left == "/var/lib/vgg-edge"


@pytest.mark.parametrize("umask", ["000", "077"])
def test_the_umask_of_the_caller_changes_no_mode(umask: str, machine: Machine) -> None:
    """Root owns every file, others may read the program and nothing else. The clone has modes of that umask.

    The second run repairs an installation of another umask, and opens the models to the service.
    """
    script = f"""
        set -e
        umask {umask}
        mkdir -p /tmp/clone/models
        cp -r --no-preserve=mode '{ROOT}'/{{pyproject.toml,README.md,LICENSE,train,export,runtime}} /tmp/clone
        cp -r --no-preserve=mode '{ROOT}/models/flowers' /tmp/clone/models
        all='/opt/vgg-edge /etc/vgg-edge /var/lib/vgg-edge /etc/systemd/system/vgg-edge.service'
        service='setpriv --reuid vgg-edge --regid vgg-edge --clear-groups'
        show_modes() {{
            find $all -not -type l \\( -perm /022 -or -not -user root \\)
            (cd / && $service find $all -not -readable 2>/dev/null || true)
            stat -c '%a %n' /etc/vgg-edge/* /etc/systemd/system/vgg-edge.service
            cat /etc/vgg-edge/extras
            (cd /var/lib/vgg-edge && $service /opt/vgg-edge/bin/python -P -s -c 'import runtime.classify')
        }}
        {install_command()} --from /tmp/clone --extras onnx >&2
        show_modes
        chmod {"666" if umask == "000" else "600"} /opt/vgg-edge/lib/python3.*/site-packages/numpy/__init__.py
        cp -r /tmp/clone/models/flowers /var/lib/vgg-edge/models/mine
        {install_command()} --from /tmp/clone >&2
        show_modes
    """
    done = machine.run("bare", f"umask {umask}", "bash", "-c", script)
    assert done.returncode == 0, done.stderr[-3000:]
    settings = [
        "/etc/vgg-edge/serve.conf",
        "/etc/vgg-edge/token",
        "600 /etc/vgg-edge/serve.conf",
        "600 /etc/vgg-edge/token",
        "644 /etc/systemd/system/vgg-edge.service",
        "644 /etc/vgg-edge/extras",
        "onnx",  # kept by the second run, which does not name it
    ]
    first, second = done.stdout.splitlines()[:7], done.stdout.splitlines()[7:]
    assert [sorted(first), sorted(second)] == [sorted(settings)] * 2


def test_both_engines_classify_and_forbidden_actions_fail(
    installed: tuple[Machine, str], start_line: str, tmp_path: Path
) -> None:
    installed[0].boot("installed", add_drop_in(tmp_path, f"{start_line} litert onnx"))
    journal = (tmp_path / "results/journal").read_text()
    assert (tmp_path / "results/results.json").exists(), journal
    results = json.loads((tmp_path / "results/results.json").read_text())
    for engine in ("litert", "onnx"):
        here = Classifier(engine=engine)(tmp_path / "photo.png")
        assert results["predictions"][engine]["label"] == here.label
        assert results["predictions"][engine]["probability"] == pytest.approx(here.probability, abs=0.001)
    assert results["user"] != 0
    assert results["actions"] == {
        "write to /etc": "Read-only file system",
        "write to /opt": "Read-only file system",
        "write to the state": "allowed",
        "write to the models": "Read-only file system",
        "replace the models": "Read-only file system",
        "read the settings": "Permission denied",
        "write to the cache": "allowed",
        "read a home": "Permission denied",
        "read the token": "Permission denied",
        "read the token's copy": "allowed",
        "write and execute": "Operation not permitted",
        "raw packets": "Address family not supported by protocol",
        "internet": "allowed",
        "user namespaces": "Operation not permitted",
        "lower the priority": "allowed",
        "raise the priority": "Permission denied",
        "lower the priority of root's process": "Operation not permitted",
        "change the scheduler": "Operation not permitted",
        "null": "allowed",
        "/dev/video0": ALLOWED_BUT_NO_DRIVER,
        "/dev/media0": ALLOWED_BUT_NO_DRIVER,
        "/dev/dma_heap/system": ALLOWED_BUT_NO_DRIVER,
        "/dev/another": "Operation not permitted",
    }
    assert "did not match anything" not in journal  # systemd's warning about a wrong name in DeviceAllow
    assert "processor information" not in journal


def test_without_cpuinfo_an_engine_does_not_recognize_the_processor(
    installed: tuple[Machine, str], start_line: str, tmp_path: Path
) -> None:
    """Why the unit lacks ProcSubset=pid; also shows that these tests notice a wrong restriction."""
    installed[0].boot("installed", add_drop_in(tmp_path, f"{start_line} onnx", "ProcSubset=pid"))
    assert "failed to parse processor information" in (tmp_path / "results/journal").read_text()


def test_the_watchdog_restarts_a_process_that_hangs(installed: tuple[Machine, str], tmp_path: Path) -> None:
    (tmp_path / "hang.py").write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "from runtime.server.systemd import notify, watchdog_interval\n"
        "os.chdir(os.environ['STATE_DIRECTORY'])\n"
        "second = Path('first').exists()\n"
        "Path('second' if second else 'first').write_text(str(watchdog_interval()))\n"
        "notify('READY=1')\n"
        "if not second:\n"
        "    notify('WATCHDOG=1')\n"
        "    time.sleep(60)\n"
    )
    lines = ("Restart=on-failure", "RestartSec=0", "WatchdogSec=1")
    start = "ExecStart=/opt/vgg-edge/bin/python -P -s /hang.py"
    installed[0].boot("installed", add_drop_in(tmp_path, start, *lines, until="test -e second"))
    assert "Watchdog timeout" in (tmp_path / "results/journal").read_text()
    assert (tmp_path / "results/second").read_text() == "0.5"


def test_the_service_answers_again_after_it_hung(
    installed: tuple[Machine, str], start_line: str, tmp_path: Path
) -> None:
    """The unit unchanged except for a shorter watchdog. The client stops the process, as if it hung."""
    units = tmp_path / "etc/systemd/system"
    (units / "vgg-edge.service.d").mkdir(parents=True)
    (units / "vgg-edge.service.d/test.conf").write_text(
        "[Unit]\nStartLimitIntervalSec=60\nStartLimitBurst=3\n[Service]\nWatchdogSec=10\nRestartSec=0\n"
    )
    (units / "client.service").write_text(
        "[Unit]\nWants=vgg-edge.service\nAfter=vgg-edge.service\n"
        "[Service]\nType=oneshot\nExecStart=/usr/bin/python3 /client.py\n"
        "ExecStopPost=/bin/sh -c 'journalctl >/results/journal; systemctl --no-block exit'\n"
    )
    (tmp_path / "etc/vgg-edge").mkdir()
    (tmp_path / "etc/vgg-edge/serve.conf").write_text(
        "OPTIONS=--host 127.0.0.1 --port 8080 --allow-host a-secret.example\n"
    )
    (tmp_path / "client.py").write_text(Path(__file__).with_name("watchdog_client.py").read_text())
    installed[0].boot("installed", tmp_path, "client.service")
    journal = (tmp_path / "results/journal").read_text()
    assert (tmp_path / "results/client.json").exists(), journal
    results = json.loads((tmp_path / "results/client.json").read_text())
    here = Classifier(engine="litert")(tmp_path / "photo.png")
    assert results["label before"] == results["label after"] == here.label
    assert results["status without token"] == 401
    # Every user may read the arguments of a process, and options may hold the password of a camera.
    assert "--options-from" in results["arguments"] and "secret" not in " ".join(results["arguments"])
    assert results["restarts"] == "1" and results["result"] == "success"
    assert "Watchdog timeout" in journal
    assert "flowers_int8.tflite" in journal  # the log names the model that runs
    assert "chmod" not in journal  # systemd's copy of the token gives no warning
