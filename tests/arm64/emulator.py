"""Python with the engines on emulated Raspberry Pi processors, without a container."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.helpers import ROOT

# Fields of /proc/cpuinfo on each board. LiteRT and ONNX Runtime crash on Arm without this file.
OLDER = "fp asimd evtstrm crc32 cpuid"
NEWER = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
CPUINFO = {
    "cortex-a53": (OLDER, "0x0", "0xd03", "4"),  # Raspberry Pi 3 and Zero 2
    "cortex-a72": (OLDER, "0x0", "0xd08", "3"),  # 4
    "cortex-a76": (NEWER, "0x4", "0xd0b", "1"),  # 5
}


def make_root() -> Path:
    """A root folder with Debian's Python for arm64, and wheels of the versions that are installed here.

    It is created once, below .cache/arm64. Needs apt and dpkg of Debian.
    """
    packages = ("numpy", "pillow", "ai-edge-litert", "tflite-runtime", "onnxruntime")
    pins = [f"{package}=={version(package)}" for package in packages]
    codename = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())
    assert codename, "this system is not Debian; the emulator needs Debian's packages for arm64"
    key = hashlib.sha256(" ".join([*pins, codename[1]]).encode()).hexdigest()[:12]
    folder = ROOT / ".cache" / "arm64" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes share the folder
        if not folder.exists():
            partial = folder.with_name(f".{key}")
            shutil.rmtree(partial, ignore_errors=True)
            unpack_debian(partial)
            install_wheels(partial, pins)
            partial.rename(folder)
    return folder


def unpack_debian(root: Path) -> None:
    """Unpack python3 and its dependencies, independent of the packages of this machine."""
    apt = root / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()  # no package is installed there yet
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "true",
        "Dir::State": apt,
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt,
    }
    get = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    run(*get, "update")
    run(*get, "--yes", "--no-install-recommends", "--download-only", "install", "python3", "libstdc++6")
    for package in (apt / "archives").glob("*.deb"):
        run("dpkg", "--extract", package, root)
    shutil.rmtree(apt)


def install_wheels(root: Path, pins: list[str]) -> None:
    python = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, 37)]
    compatible = [
        "--platform=manylinux2014_aarch64",
        *platforms,
        "--implementation=cp",
        "--only-binary=:all:",
    ]
    target = [f"--python-version={python}", f"--target={root}/site", "--no-compile", "--quiet"]
    run(sys.executable, "-m", "pip", "install", *compatible, *target, *pins)


def run(*command: str | Path) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]}: {done.stderr[-2000:]}"


def python_on(
    root: Path, board: Path, cpu: str, *options: str, program: str = "qemu-aarch64-static"
) -> list[str]:
    """The command of Python on `cpu`, with the files of `root` and the board's own /proc/cpuinfo.

    `board` is an empty folder. `options` are passed to the emulator, `program`.
    """
    for path in root.iterdir():
        if path.name != "proc":
            (board / path.name).symlink_to(path)
    features, variant, part, revision = CPUINFO[cpu]
    core = (
        "processor\t: {}\nBogoMIPS\t: 108.00\n"
        f"Features\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        f"CPU variant\t: {variant}\nCPU part\t: {part}\nCPU revision\t: {revision}\n\n"
    )
    (board / "proc").mkdir()
    (board / "proc/cpuinfo").write_text("".join(core.format(number) for number in range(4)))
    environment = ("-E", f"PYTHONPATH={ROOT}:{board}/site", "-E", "PYTHONDONTWRITEBYTECODE=1")
    python = (root / "usr/bin/python3").readlink().name
    # Python finds its own name in argv[0] and starts the decoding process with it, which runs this script.
    script = board / "python"
    qemu = [program, "-cpu", cpu, "-0", str(script), "-L", str(board), *environment]
    script.write_text(f'#!/bin/sh\nexec {shlex.join(qemu)} {board}/usr/bin/{python} "$@"\n')
    script.chmod(0o755)
    return [*qemu, *options, f"{board}/usr/bin/{python}"]
