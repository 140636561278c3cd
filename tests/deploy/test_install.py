"""deploy/install.sh: the commands that it prints for each system."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import BOOKWORM, INSTALL, TRIXIE, Machine, install_command
from tests.programs import require_program

RASPBIAN = 'PRETTY_NAME="Raspbian GNU/Linux 12 (bookworm)"\nID=raspbian\nVERSION_CODENAME=bookworm\n'
BULLSEYE = BOOKWORM.replace("bookworm", "bullseye").replace("12", "11")


def dry_run(
    *arguments: str, folder: Path, os_release: str = BOOKWORM, architecture: str = "arm64"
) -> tuple[int, list[str], str]:
    """Exit code, printed commands, and stderr, on a machine of this release and architecture."""
    (folder / "os-release").write_text(os_release)
    system = ("--os-release", str(folder / "os-release"), "--architecture", architecture)
    done = subprocess.run([INSTALL, "--dry-run", *system, *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines(), done.stderr


def dry_run_with(folder: Path, place: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A dry run where the folder, which holds the file os-release, is mounted at `place`."""
    unshare = ["unshare", "--mount", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this system gives no mount namespace")
    command = (
        f"mount --bind '{folder}' {place} && '{INSTALL}' --dry-run --architecture arm64 "
        f"--os-release {place}/os-release {' '.join(arguments)}"
    )
    return subprocess.run([*unshare, "bash", "-c", command], capture_output=True, text=True)


def test_a_missing_program_fails_only_in_continuous_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install shellcheck"):
        require_program("shellcheck", "shellcheck")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="apt-get install shellcheck"):
        require_program("shellcheck", "shellcheck")


def test_shellcheck_finds_no_problem() -> None:
    scripts = [INSTALL, *Path(__file__).parent.glob("*.sh")]
    done = subprocess.run(
        [require_program("shellcheck", "shellcheck"), *scripts], capture_output=True, text=True
    )
    assert done.stdout == "" and done.returncode == 0


@pytest.mark.parametrize("os_release", [BOOKWORM, TRIXIE], ids=["bookworm", "trixie"])
def test_a_dry_run_prints_every_command(os_release: str, tmp_path: Path) -> None:
    code, commands, stderr = dry_run(os_release=os_release, folder=tmp_path)
    assert code == 0 and stderr == ""
    assert all(command.startswith("+ ") for command in commands)
    text = "\n".join(commands)
    for part in (
        "useradd --system --user-group",
        "-m venv /opt/vgg-edge",
        "pip install --require-hashes --no-deps",
        "pip install --force-reinstall --no-deps --no-build-isolation /opt/vgg-edge/source",
        "install -m 600",
        "chown -R --no-dereference root:root /var/lib/vgg-edge/models",
        ">/etc/vgg-edge/token.new",
        "mv /etc/vgg-edge/token.new /etc/vgg-edge/token",
        "/etc/systemd/system/vgg-edge.service",
        "systemctl enable vgg-edge.service",
        "systemctl restart vgg-edge.service",
    ):
        assert part in text
    assert "picamera2" not in text and "system-site-packages" not in text
    assert not Path("/opt/vgg-edge").exists() and not Path("/etc/vgg-edge").exists()


def test_a_link_in_place_of_the_models_is_refused(tmp_path: Path) -> None:
    """In an earlier version the service could make one: root would open the folder behind it to all users."""
    (tmp_path / "vgg-edge").mkdir()
    (tmp_path / "vgg-edge" / "models").symlink_to("/root")
    (tmp_path / "os-release").write_text(BOOKWORM)
    done = dry_run_with(tmp_path, "/var/lib")
    assert done.returncode == 2 and "error: /var/lib/vgg-edge/models is a link: remove it" in done.stderr
    assert "/var/lib/vgg-edge/models" not in done.stdout


@pytest.mark.parametrize("arguments", [(), ("--uninstall",)])
def test_a_clone_in_the_folder_of_the_program_is_not_deleted(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "vgg-edge").mkdir()
    (tmp_path / "vgg-edge" / "pyproject.toml").touch()
    (tmp_path / "os-release").write_text(BOOKWORM)
    done = dry_run_with(tmp_path, "/opt", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: /opt/vgg-edge has files") and done.stderr.count("\n") == 1


def test_a_dry_run_on_another_system_prints_the_commands_for_a_pi(tmp_path: Path) -> None:
    """As on a PC, where dpkg does not report arm64."""
    dpkg = tmp_path / "dpkg"
    dpkg.write_text("#!/bin/sh\necho amd64\n")
    dpkg.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run([INSTALL, "--dry-run"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "systemctl restart vgg-edge.service" in done.stdout
    (note,) = done.stderr.splitlines()
    assert note.startswith("note: amd64 ")


@pytest.mark.parametrize("os_release", [BOOKWORM, TRIXIE], ids=["bookworm", "trixie"])
def test_picamera2_comes_from_debian_with_its_numpy(os_release: str, tmp_path: Path) -> None:
    code, commands, _ = dry_run("--picamera2", os_release=os_release, folder=tmp_path)
    text = "\n".join(commands)
    assert code == 0
    assert re.search(r"apt-get install .* python3-picamera2", text)
    assert "-m venv --system-site-packages /opt/vgg-edge" in text
    assert "pip uninstall --yes numpy" in text and "grep -v" in text and "^numpy==" in text


def test_a_wheel_replaces_an_installed_wheel_of_the_same_version(tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    wheel.touch()
    _, commands, _ = dry_run("--from", str(wheel), folder=tmp_path)
    first, second = (command for command in commands if "pip install" in command)
    assert "--require-hashes" in first
    assert second.endswith(f"pip install --force-reinstall --no-deps --no-build-isolation {wheel}")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), {"numpy", "pillow", "setuptools", "ai-edge-litert", "av", "uvicorn"}),
        (("--extras", "onnx,verify"), {"numpy", "pillow", "setuptools", "onnxruntime", "cryptography"}),
        (("--extras", "onnx, mqtt"), {"numpy", "pillow", "setuptools", "onnxruntime", "paho-mqtt"}),
        (("--picamera2",), {"pillow", "setuptools", "ai-edge-litert", "av", "uvicorn"}),
    ],
)
def test_the_packages_of_the_extras_come_from_the_lock_file(
    arguments: tuple[str, ...], names: set[str], tmp_path: Path
) -> None:
    """The printed command, run here, writes the file that pip installs from."""
    _, commands, _ = dry_run(*arguments, folder=tmp_path)
    (command,) = (command for command in commands if "requirements.lock" in command)
    chosen = tmp_path / "requirements.txt"
    command = command.removeprefix("+ ").replace("/opt/vgg-edge/requirements.txt", str(chosen))
    subprocess.run(["bash", "-c", command], check=True)
    lines = chosen.read_text().splitlines()
    found = {line.split("==")[0] for line in lines}
    listed = {
        "numpy",
        "pillow",
        "setuptools",
        "ai-edge-litert",
        "av",
        "uvicorn",
        "onnxruntime",
        "cryptography",
        "paho-mqtt",
    }
    assert found & listed == names and all("--hash=sha256:" in line for line in lines)


def test_a_second_run_keeps_picamera2_and_replaces_an_empty_token(machine: Machine) -> None:
    script = f"""
        mkdir -p /opt/vgg-edge /etc/vgg-edge
        echo 'include-system-site-packages = true' >/opt/vgg-edge/pyvenv.cfg
        : >/etc/vgg-edge/token
        {install_command()} --dry-run
        echo {"x" * 32} >/etc/vgg-edge/token
        {install_command()} --dry-run | grep -c token
        sed -i s/true/false/ /opt/vgg-edge/pyvenv.cfg
        {install_command()} --dry-run | grep -c picamera2
    """
    done = machine.run("bare", "interrupted", "bash", "-c", script)
    assert done.stdout, done.stderr
    *commands, tokens, picameras = done.stdout.splitlines()
    text = "\n".join(commands)
    assert "-m venv --system-site-packages /opt/vgg-edge" in text and "python3-picamera2" in text
    assert "pip uninstall --yes numpy" in text
    assert "mv /etc/vgg-edge/token.new /etc/vgg-edge/token" in text
    assert (tokens, picameras) == ("0", "0")


@pytest.mark.parametrize(
    ("os_release", "architecture", "arguments", "fact"),
    [
        (RASPBIAN, "armhf", (), "32-bit system (armhf)"),
        (TRIXIE, "amd64", (), "amd64"),
        (BULLSEYE, "arm64", (), "bullseye"),
        (BOOKWORM, "arm64", ("--from", "/nowhere"), "/nowhere"),
        (BOOKWORM, "arm64", ("--extras",), "--extras"),
        (BOOKWORM, "arm64", ("--extras", "litert,train"), "train"),
        (BOOKWORM, "arm64", ("--extras", "(.*)"), "(.*)"),
        (BOOKWORM, "arm64", ("--extras", "litert web"), "separated by commas"),
        (BOOKWORM, "arm64", ("--frobnicate",), "--frobnicate"),
    ],
)
def test_an_unsupported_system_or_option_is_a_one_line_error(
    os_release: str, architecture: str, arguments: tuple[str, ...], fact: str, tmp_path: Path
) -> None:
    code, commands, stderr = dry_run(
        *arguments, os_release=os_release, architecture=architecture, folder=tmp_path
    )
    assert code == 2 and commands == []
    (line,) = stderr.splitlines()
    assert line.startswith("error: ") and fact in line
