"""The released model in every engine on emulated Raspberry Pi processors.

`make test-arm64` runs these tests. They need apt, dpkg and qemu-user-static of Debian, but no container. The
root folder that they create (Debian's Python and the wheels for aarch64) stays in .cache/arm64. The tests
compare the answers with those of this machine, and check which kernels ran. Emulated speed says nothing about
real speed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest

from runtime.inference.engines import ENGINES
from tests.deploy.conftest import require_program
from tests.helpers import RELEASED, ROOT
from train.data.synthetic import draw_flower

# The integer arithmetic is identical. The first layer and the head are float: another order of summation can
# change an 8-bit code by one. Measured: 0.000001 in LiteRT and tflite-runtime, 0.0004 in ONNX Runtime.
MAX_DIFFERENCE = 0.005

# Fields of /proc/cpuinfo on each board. LiteRT and ONNX Runtime crash on Arm without this file.
OLDER = "fp asimd evtstrm crc32 cpuid"
NEWER = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
CPUINFO = {
    "cortex-a53": (OLDER, "0x0", "0xd03", "4"),  # Raspberry Pi 3 and Zero 2
    "cortex-a72": (OLDER, "0x0", "0xd08", "3"),  # 4
    "cortex-a76": (NEWER, "0x4", "0xd0b", "1"),  # 5
}
# OpenVINO has wheels for 64-bit Arm, but was not run in the emulator.
EMULATED = tuple(engine for engine in ENGINES if engine != "openvino")
# Engines that use dot-product instructions. The int8 kernels of tflite-runtime 2.14 have none.
DOT_PRODUCTS = {("litert", "cortex-a76"), ("onnx", "cortex-a76")}


@pytest.fixture(scope="session")
def root() -> Path:
    """A root folder with Debian's Python for arm64, and wheels of the versions that are installed here."""
    packages = ("numpy", "pillow", "ai-edge-litert", "tflite-runtime", "onnxruntime")
    pins = [f"{package}=={version(package)}" for package in packages]
    for program, package in (
        ("apt-get", "apt"),
        ("dpkg", "dpkg"),
        ("qemu-aarch64-static", "qemu-user-static"),
    ):
        require_program(program, package)
    codename = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())
    assert codename, "this system is not Debian; the test needs Debian's packages for arm64"
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


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three flowers: real photos if VGG_EDGE_PHOTOS is set, otherwise synthetic pictures."""
    names = ("daisy", "roses", "tulips")
    if real := os.environ.get("VGG_EDGE_PHOTOS"):
        return [min((Path(real) / "test" / name).iterdir()) for name in names]
    folder = tmp_path_factory.mktemp("synthetic")
    for name in names:
        draw_flower(name, 0).save(folder / f"{name}.jpg", quality=90)
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def answers_here(photos: list[Path]) -> dict[str, list[dict[str, float]]]:
    """The answers on this machine, by engine."""
    return {engine: classify([sys.executable], engine, photos)[0] for engine in EMULATED}


def classify(command: list[str], engine: str, photos: list[Path]) -> tuple[list[dict[str, float]], list[str]]:
    """Run `COMMAND -m runtime.classify`.

    Returns each photo's probabilities by label, the most probable first, and the lines of stderr.
    """
    flags = f"--json --engine {engine} --threads 1 --top 5 --model {RELEASED.relative_to(ROOT)}"
    command = [*command, "-m", "runtime.classify", *flags.split(), *map(str, photos)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, f"exit code {done.returncode} (negative: a signal): {done.stderr[-500:]}"
    tops = [json.loads(line)["top"] for line in done.stdout.splitlines()]
    return [{score["label"]: score["probability"] for score in top} for top in tops], done.stderr.splitlines()


@pytest.fixture
def emulate(root: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Returns the command that runs Python on an emulated processor."""
    return partial(python_on, root, tmp_path)


def python_on(root: Path, board: Path, cpu: str, *logs: str) -> list[str]:
    """The command of Python on `cpu`, with the files of `root` and the board's own /proc/cpuinfo."""
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
    qemu = ["qemu-aarch64-static", "-cpu", cpu, "-0", str(script), "-L", str(board), *environment]
    script.write_text(f'#!/bin/sh\nexec {shlex.join(qemu)} {board}/usr/bin/{python} "$@"\n')
    script.chmod(0o755)
    return [*qemu, *logs, f"{board}/usr/bin/{python}"]


@pytest.mark.parametrize("cpu", CPUINFO)
@pytest.mark.parametrize("engine", EMULATED)
def test_the_answers_are_those_of_this_machine(
    engine: str,
    cpu: str,
    emulate: Callable[..., list[str]],
    photos: list[Path],
    answers_here: dict[str, list[dict[str, float]]],
) -> None:
    answers, log = classify(emulate(cpu, "-d", "in_asm"), engine, photos)
    expected = answers_here[engine]
    difference = max(
        abs(on_arm[label] - here[label])
        for on_arm, here in zip(answers, expected, strict=True)
        for label in here
    )
    dots = sum(map(is_dot_product, log))
    print(
        f"{engine} on {cpu}: {len(photos)} photos, max |Δp| {difference:.6f}, {dots} SDOT and UDOT translated"
    )
    assert [next(iter(answer)) for answer in answers] == [next(iter(answer)) for answer in expected]
    assert difference <= MAX_DIFFERENCE
    assert any("ret" in line for line in log)  # the log is not empty
    assert (dots > 0) == ((engine, cpu) in DOT_PRODUCTS)


def is_dot_product(line: str) -> bool:
    """Whether a line of qemu's log shows that an SDOT or UDOT instruction was translated for execution.

    Encodings from the Arm Architecture Reference Manual for A-profile: vector, and by element.
    """
    found = re.match(r"0x[0-9a-f]+:\s+([0-9a-f]{8})\b", line)
    word = int(found[1], 16) if found else 0
    return word & 0x9FE0FC00 == 0x0E809400 or word & 0x9FC0F400 == 0x0F80E000


@pytest.mark.parametrize("engine", ["litert", "onnx"])
def test_no_memory_is_both_writable_and_executable(
    engine: str, emulate: Callable[..., list[str]], photos: list[Path]
) -> None:
    """deploy/vgg-edge.service sets MemoryDenyWriteExecute, so an engine must not need such memory."""
    _, log = classify(emulate("cortex-a76", "-strace"), engine, photos[:1])
    executable = [line for line in log if "PROT_EXEC" in line]
    assert [line for line in executable if " mmap(" in line]
    assert [line for line in executable if "PROT_WRITE" in line or "mprotect(" in line] == []
