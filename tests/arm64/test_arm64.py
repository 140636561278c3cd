"""The runtime on emulated Arm: the released model, in every engine, on the processors of a Raspberry Pi.

`make test-arm64` runs it; it needs Debian's apt, dpkg and qemu-user-static, and no container. The root that
it makes, Debian's Python and the wheels for aarch64, stays in .cache/arm64. Emulated speed says nothing of
real speed: what is tested is that the answers are those of this machine, and which kernels gave them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from runtime.inference.engines import ENGINES
from tests.deploy.conftest import need
from tests.helpers import ROOT
from train.data.synthetic import FLOWERS, draw_flower

MODEL = ROOT / "models" / "flowers"

# The same code computes the same integers: what may differ is the float arithmetic of the first layer and the
# head, where another order of summation can move an 8-bit code by one. Measured on a photo of each flower:
# 0.000001 at most in LiteRT and tflite-runtime, 0.0004 in ONNX Runtime.
MAX_DIFFERENCE = 0.005

# What /proc/cpuinfo says on each board: LiteRT and ONNX Runtime read it, and crash on Arm without it.
PLAIN = "fp asimd evtstrm crc32 cpuid"
NEWER = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
CPUINFO = {
    "cortex-a53": (PLAIN, "0x0", "0xd03", "4"),  # Raspberry Pi 3 and Zero 2
    "cortex-a72": (PLAIN, "0x0", "0xd08", "3"),  # 4
    "cortex-a76": (NEWER, "0x4", "0xd0b", "1"),  # 5
}
# tflite-runtime 2.14 has none in what it runs int8 files with.
DOT_PRODUCTS = {("litert", "cortex-a76"), ("onnx", "cortex-a76")}


@pytest.fixture(scope="session")
def root() -> Path:
    """Debian's Python for arm64 and the wheels, of the versions that are installed here."""
    packages = ("numpy", "pillow", "ai-edge-litert", "tflite-runtime", "onnxruntime")
    pins = [f"{package}=={version(package)}" for package in packages]
    for program, package in (
        ("apt-get", "apt"),
        ("dpkg", "dpkg"),
        ("qemu-aarch64-static", "qemu-user-static"),
    ):
        need(program, package)
    codename = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())
    assert codename, "this is not Debian: its packages for arm64 are needed"
    key = hashlib.sha256(" ".join([*pins, codename[1]]).encode()).hexdigest()[:12]
    place = ROOT / ".cache" / "arm64" / key
    if not place.exists():
        partial = place.with_name(f".{key}.{os.getpid()}")
        try:
            unpack_debian(partial)
            install_wheels(partial, pins)
            partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return place


def unpack_debian(root: Path) -> None:
    """python3 and all that it needs, without asking or changing what this machine has installed."""
    apt = root / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()  # nothing is installed there yet
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
    do(*get, "update")
    do(*get, "--yes", "--no-install-recommends", "--download-only", "install", "python3", "libstdc++6")
    for package in (apt / "archives").glob("*.deb"):
        do("dpkg", "--extract", package, root)
    shutil.rmtree(apt)


def install_wheels(root: Path, pins: list[str]) -> None:
    python = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, 37)]
    fitting = ["--platform=manylinux2014_aarch64", *platforms, "--implementation=cp", "--only-binary=:all:"]
    target = [f"--python-version={python}", f"--target={root}/site", "--no-compile", "--quiet"]
    do(sys.executable, "-m", "pip", "install", *fitting, *target, *pins)


def do(*command: str | Path) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]}: {done.stderr[-2000:]}"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A real photo of each flower where VGG_EDGE_PHOTOS has them, else three drawn ones."""
    if real := os.environ.get("VGG_EDGE_PHOTOS"):
        return [min((Path(real) / "test" / name).iterdir()) for name in sorted(FLOWERS)]
    folder = tmp_path_factory.mktemp("drawn")
    paths = [folder / f"{name}.jpg" for name in ("daisy", "roses", "tulips")]
    for path in paths:
        draw_flower(path.stem, 0).save(path, quality=90)
    return paths


@pytest.fixture(scope="session")
def answers_here(photos: list[Path]) -> dict[str, list[dict[str, float]]]:
    """This machine's own, by engine."""
    return {engine: classify([sys.executable], engine, photos)[0] for engine in ENGINES}


def classify(command: list[str], engine: str, photos: list[Path]) -> tuple[list[dict[str, float]], list[str]]:
    """What `COMMAND -m runtime.classify` answers, each photo's probabilities by label with the most probable
    first, and the lines of its stderr."""
    command = [
        *command,
        "-m",
        "runtime.classify",
        "--json",
        "--engine",
        engine,
        "--threads",
        "1",
        "--top",
        "5",
    ]
    command += ["--model", str(MODEL), *map(str, photos)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, (
        f"exit code {done.returncode} (a signal where negative): {done.stderr[-500:]}"
    )
    tops = [json.loads(line)["top"] for line in done.stdout.splitlines()]
    return [{guess["label"]: guess["probability"] for guess in top} for top in tops], done.stderr.splitlines()


def emulated(root: Path, cpu: str, *logs: str) -> list[str]:
    """The command that is `python` on this processor."""
    features, variant, part, revision = CPUINFO[cpu]
    core = (
        "processor\t: {}\nBogoMIPS\t: 108.00\n"
        f"Features\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        f"CPU variant\t: {variant}\nCPU part\t: {part}\nCPU revision\t: {revision}\n\n"
    )
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text("".join(core.format(number) for number in range(4)))
    environment = ("-E", f"PYTHONPATH={ROOT}:{root}/site", "-E", "PYTHONDONTWRITEBYTECODE=1")
    python = (root / "usr/bin/python3").readlink().name
    return [
        "qemu-aarch64-static",
        "-cpu",
        cpu,
        *logs,
        "-L",
        str(root),
        *environment,
        f"{root}/usr/bin/{python}",
    ]


@pytest.mark.parametrize("cpu", CPUINFO)
@pytest.mark.parametrize("engine", ENGINES)
def test_answers_and_kernels(
    engine: str, cpu: str, root: Path, photos: list[Path], answers_here: dict[str, list[dict[str, float]]]
) -> None:
    answers, log = classify(emulated(root, cpu, "-d", "in_asm"), engine, photos)
    expected = answers_here[engine]
    difference = max(
        abs(there[label] - here[label])
        for there, here in zip(answers, expected, strict=True)
        for label in here
    )
    dots = sum(map(is_dot_product, log))
    print(
        f"{engine} on {cpu}: {len(photos)} photos, max |Δp| {difference:.6f}, {dots} SDOT and UDOT translated"
    )
    assert [next(iter(answer)) for answer in answers] == [next(iter(answer)) for answer in expected]
    assert difference <= MAX_DIFFERENCE
    assert any("ret" in line for line in log)  # the log is there
    assert (dots > 0) == ((engine, cpu) in DOT_PRODUCTS)


def is_dot_product(line: str) -> bool:
    """Whether a line of qemu's log shows an SDOT or UDOT translated, that is, about to be executed.

    Encodings from the Arm Architecture Reference Manual for A-profile: vector, and by element.
    """
    found = re.match(r"0x[0-9a-f]+:\s+([0-9a-f]{8})\b", line)
    word = int(found[1], 16) if found else 0
    return word & 0x9FE0FC00 == 0x0E809400 or word & 0x9FC0F400 == 0x0F80E000


@pytest.mark.parametrize("engine", ["litert", "onnx"])
def test_no_memory_is_writable_and_executable(engine: str, root: Path, photos: list[Path]) -> None:
    """On Arm too the engines need nothing that MemoryDenyWriteExecute in deploy/vgg-edge.service forbids."""
    _, log = classify(emulated(root, "cortex-a76", "-strace"), engine, photos[:1])
    executable = [line for line in log if "PROT_EXEC" in line]
    assert [line for line in executable if " mmap(" in line]
    assert [line for line in executable if "PROT_WRITE" in line or "mprotect(" in line] == []
