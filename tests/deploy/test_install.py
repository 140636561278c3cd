"""deploy/install.sh: what it would do on each system, and what it really does to a machine of a container."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import BOOKWORM, TRIXIE, Machine, install, need
from tests.helpers import ROOT

INSTALL = ROOT / "deploy" / "install.sh"
RASPBIAN = 'PRETTY_NAME="Raspbian GNU/Linux 12 (bookworm)"\nID=raspbian\nVERSION_CODENAME=bookworm\n'
BULLSEYE = BOOKWORM.replace("bookworm", "bullseye").replace("12", "11")


def dry_run(*arguments: str, os_release: str, architecture: str, folder: Path) -> tuple[int, list[str], str]:
    """Exit code, the commands it prints, and what it says on stderr."""
    (folder / "os-release").write_text(os_release)
    pretend = ("--os-release", str(folder / "os-release"), "--architecture", architecture)
    done = subprocess.run([INSTALL, "--dry-run", *pretend, *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_a_missing_program_fails_in_continuous_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(
        pytest.fail.Exception, match="shellcheck is not installed: apt-get install shellcheck"
    ):
        need("shellcheck", "shellcheck")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="apt-get install"):
        need("shellcheck", "shellcheck")


def test_shellcheck_has_nothing_to_say() -> None:
    scripts = [INSTALL, *Path(__file__).parent.glob("*.sh")]
    done = subprocess.run([need("shellcheck", "shellcheck"), *scripts], capture_output=True, text=True)
    assert done.stdout == "" and done.returncode == 0


@pytest.mark.parametrize("os_release", [BOOKWORM, TRIXIE], ids=["bookworm", "trixie"])
def test_dry_run_prints_every_command(os_release: str, tmp_path: Path) -> None:
    code, commands, said = dry_run(os_release=os_release, architecture="arm64", folder=tmp_path)
    assert code == 0 and said == ""
    assert all(command.startswith("+ ") for command in commands)
    text = "\n".join(commands)
    for part in (
        "useradd --system --user-group",
        "-m venv /opt/vgg-edge",
        "pip install --upgrade '/opt/vgg-edge/source[litert,camera,web]'",
        ">/etc/vgg-edge/token.new",
        "mv /etc/vgg-edge/token.new /etc/vgg-edge/token",
        "/etc/systemd/system/vgg-edge.service",
        "systemctl enable vgg-edge.service",
        "systemctl restart vgg-edge.service",
    ):
        assert part in text
    assert "picamera2" not in text and "system-site-packages" not in text
    assert not Path("/opt/vgg-edge").exists() and not Path("/etc/vgg-edge").exists()


@pytest.mark.parametrize("os_release", [BOOKWORM, TRIXIE], ids=["bookworm", "trixie"])
def test_picamera2_comes_from_debian_with_its_numpy(os_release: str, tmp_path: Path) -> None:
    code, commands, _ = dry_run("--picamera2", os_release=os_release, architecture="arm64", folder=tmp_path)
    text = "\n".join(commands)
    assert code == 0
    assert re.search(r"apt-get install .* python3-picamera2", text)
    assert "-m venv --system-site-packages /opt/vgg-edge" in text
    assert "pip install --upgrade --constraint /etc/vgg-edge/constraints.txt" in text


def test_a_wheel_replaces_one_of_the_same_version(tmp_path: Path) -> None:
    (tmp_path / "x.whl").touch()
    given = ("--from", str(tmp_path / "x.whl"))
    _, commands, _ = dry_run(*given, os_release=BOOKWORM, architecture="arm64", folder=tmp_path)
    first, second = (command for command in commands if "pip install" in command)
    assert first.endswith(f"pip install --upgrade '{tmp_path}/x.whl[litert,camera,web]'")
    assert second.endswith(f"pip install --force-reinstall --no-deps {tmp_path}/x.whl")


def test_a_run_after_one_with_picamera2_and_an_interrupted_one(machine: Machine) -> None:
    """It keeps to Debian's packages, and does not take an empty token for one."""
    script = f"""
        mkdir -p /opt/vgg-edge /etc/vgg-edge
        echo 'include-system-site-packages = true' >/opt/vgg-edge/pyvenv.cfg
        : >/etc/vgg-edge/token
        {install()} --dry-run
        echo {"x" * 32} >/etc/vgg-edge/token
        {install()} --dry-run | grep -c token
        sed -i s/true/false/ /opt/vgg-edge/pyvenv.cfg
        {install()} --dry-run | grep -c picamera2
    """
    done = machine.run("bare", "interrupted", "bash", "-c", script)
    *commands, tokens, picameras = done.stdout.splitlines()
    text = "\n".join(commands)
    assert "-m venv --system-site-packages /opt/vgg-edge" in text and "python3-picamera2" in text
    assert "pip install --upgrade --constraint /etc/vgg-edge/constraints.txt" in text
    assert "mv /etc/vgg-edge/token.new /etc/vgg-edge/token" in text
    assert (tokens, picameras) == ("0", "0")


@pytest.mark.parametrize(
    ("os_release", "architecture", "arguments", "says"),
    [
        (RASPBIAN, "armhf", (), "32-bit system (armhf)"),
        (TRIXIE, "amd64", (), "amd64 is not a 64-bit Raspberry Pi"),
        (BULLSEYE, "arm64", (), "bullseye is not supported"),
        (BOOKWORM, "arm64", ("--from", "/nowhere"), "/nowhere is neither a wheel nor a clone"),
        (BOOKWORM, "arm64", ("--extras",), "--extras needs a value"),
        (BOOKWORM, "arm64", ("--frobnicate",), "there is no option --frobnicate"),
    ],
)
def test_what_it_cannot_do_is_one_line(
    os_release: str, architecture: str, arguments: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    code, commands, said = dry_run(
        *arguments, os_release=os_release, architecture=architecture, folder=tmp_path
    )
    assert code == 2 and commands == []
    (line,) = said.splitlines()
    assert line.startswith("error: ") and says in line


def test_a_second_run_keeps_the_settings_and_uninstall_the_pictures(installed: Machine) -> None:
    script = f"""
        set -e
        stat -c '%a %U' /etc/vgg-edge/token
        ls -l /etc/systemd/system/multi-user.target.wants/vgg-edge.service
        ! /opt/vgg-edge/bin/python -c 'import tensorflow' 2>/dev/null
        cp /etc/vgg-edge/token /token
        echo '# mine' >>/etc/vgg-edge/serve.conf
        {install()} --extras litert,onnx,web >&2
        cmp /token /etc/vgg-edge/token
        grep mine /etc/vgg-edge/serve.conf
        mkdir -p /var/lib/vgg-edge/models
        {INSTALL} --uninstall
        {INSTALL} --uninstall
        ls -d /opt/vgg-edge /etc/vgg-edge /etc/systemd/system/vgg-edge.service /var/lib/vgg-edge \
            /etc/systemd/system/multi-user.target.wants/vgg-edge.service 2>/dev/null || true
        ! getent passwd vgg-edge
    """
    done = installed.run("installed", "uninstalled", "bash", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    token, wanted, mine, kept, again, left = done.stdout.splitlines()
    assert token == "600 root"
    assert wanted.endswith("vgg-edge.service -> /etc/systemd/system/vgg-edge.service")
    assert mine == "# mine"
    assert kept == again and kept.startswith("kept: /var/lib/vgg-edge")
    assert left == "/var/lib/vgg-edge"
