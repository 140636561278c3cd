"""The released model in every engine on emulated Raspberry Pi processors.

`make test-arm64` runs these tests. They need apt, dpkg and qemu-user-static of Debian, but no container. The
root folder that they create (Debian's Python and the wheels for aarch64) stays in .cache/arm64. The tests
compare the answers with those of this machine, and check which kernels ran. Emulated speed says nothing about
real speed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from runtime.inference.engines import ENGINES
from tests.arm64.emulator import CPUINFO, make_root, python_on
from tests.helpers import RELEASED, ROOT
from tests.programs import require_program
from train.data.synthetic import draw_flower

# The integer arithmetic is identical. The first layer and the head are float: another order of summation can
# change an 8-bit code by one. Measured: 0.000001 in LiteRT and tflite-runtime, 0.0004 in ONNX Runtime.
MAX_DIFFERENCE = 0.005

# OpenVINO has wheels for 64-bit Arm, but was not run in the emulator.
EMULATED = tuple(engine for engine in ENGINES if engine != "openvino")
# Engines that use dot-product instructions. The int8 kernels of tflite-runtime 2.14 have none.
DOT_PRODUCTS = {("litert", "cortex-a76"), ("onnx", "cortex-a76")}


@pytest.fixture(scope="session")
def root() -> Path:
    for program, package in (
        ("apt-get", "apt"),
        ("dpkg", "dpkg"),
        ("qemu-aarch64-static", "qemu-user-static"),
    ):
        require_program(program, package)
    return make_root()


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
