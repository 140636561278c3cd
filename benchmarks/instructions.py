"""Counts the instructions of one inference on emulated Raspberry Pi processors.

    apt-get install qemu-user gcc        # Debian 12; qemu-user-static cannot load plugins
    python -m benchmarks.instructions    # 20 minutes on 2 busy cores; writes instructions.csv and .md

The released int8 files run in LiteRT and ONNX Runtime for aarch64, on one thread, in QEMU's user mode. A
plugin (instruction_counter.c) adds up the executed instructions by kind, and writes the sums at each mark
that instruction_worker.py sets between two inferences: the difference of two marks is one inference, without
start-up and warm-up. Each processor has its own features and /proc/cpuinfo, so the engines choose the kernels
that they choose on the board. The counts are exact; emulated time says nothing about real time.

`--release NAME` counts one release, and keeps the rows of the others. `--table` writes instructions.md again
from instructions.csv. benchmarks/boards.py estimates frame rates from these counts.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

from benchmarks.markdown_table import table_row
from export.macs import count_macs
from tests.arm64.emulator import CPUINFO, make_root, python_on
from tests.helpers import ROOT

FOLDER = Path(__file__).parent
RECORD = FOLDER / "instructions.csv"
TABLE = FOLDER / "instructions.md"
COUNTER = FOLDER / "instruction_counter.c"
RELEASES = ("flowers", "flowers_small")  # in models/
FORMATS = {"litert": "tflite", "onnx": "onnx"}  # tflite-runtime 2.14 has no kernels for dot products
RUNS = 2  # counted inferences
MAX_DIFFERENCE = 0.01  # between them, of their mean
KIND_TITLES = {
    "dot": "int8 dot products",
    "multiply": "int multiplies",
    "float_multiply": "float multiplies",
    "other_simd": "other SIMD",
    "simd_memory": "SIMD loads, stores",
    "memory": "other loads, stores",
    "branch": "branches",
    "integer": "integer",
}


@dataclass(frozen=True)
class InstructionCount:
    """The instructions of one inference on one thread, by kind in the order of instruction_counter.c."""

    cpu: str
    engine: str  # with its version
    file: str
    gmacs: float
    dot: int  # SDOT and UDOT: 16 products of 8-bit codes
    multiply: int  # integer SIMD multiplies, such as SMULL and SMLAL
    float_multiply: int
    other_simd: int
    simd_memory: int
    memory: int
    branch: int
    integer: int
    integer_loops: int  # of all kinds, in blocks with at least 4 integer products: the int8 convolutions
    float_loops: int  # the same with float products: the first convolution and the head

    @property
    def total(self) -> int:
        return sum(getattr(self, kind) for kind in KIND_TITLES)

    @property
    def release(self) -> str:
        return self.file.rpartition("_int8.")[0]

    @property
    def simd_arithmetic(self) -> int:
        return self.dot + self.multiply + self.float_multiply + self.other_simd


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the instructions of one inference, by kind.")
    parser.add_argument("--qemu", default="qemu-aarch64", help="the emulator with plugins (qemu-aarch64)")
    parser.add_argument("--release", choices=RELEASES, help="count this one only (default: all)")
    parser.add_argument("--table", action="store_true", help="only write the table of the recorded counts")
    arguments = parser.parse_args()
    if not arguments.table:
        counted = count_all(arguments.qemu, [arguments.release] if arguments.release else RELEASES)
        kept = [item for item in read_counts() if item.release not in {new.release for new in counted}]
        record(sorted([*kept, *counted], key=lambda item: RELEASES.index(item.release)))
    TABLE.write_text(table(read_counts()), "utf-8")
    return 0


def count_all(qemu: str, releases: Sequence[str]) -> list[InstructionCount]:
    jobs = [(release, cpu, engine) for release in releases for cpu in CPUINFO for engine in FORMATS]
    root = make_root()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        plugin = Path(folder, "instruction_counter.so")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", plugin, COUNTER], check=True)
        return list(pool.map(lambda job: count(qemu, plugin, root, *job), jobs))


def count(qemu: str, plugin: Path, root: Path, release: str, cpu: str, engine: str) -> InstructionCount:
    """Run one released file in the emulator, and average the inferences."""
    path = ROOT / "models" / release / f"{release}_int8.{FORMATS[engine]}"
    with tempfile.TemporaryDirectory() as folder:
        board, marks = Path(folder, "board"), Path(folder, "marks")
        board.mkdir()
        options = ("-plugin", f"{plugin},out={marks}")
        worker = ["-m", "benchmarks.instruction_worker", str(path), engine, str(RUNS)]
        done = subprocess.run(
            [*python_on(root, board, cpu, *options, program=qemu), *worker],
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode:
            sys.exit(f"{qemu} stopped with status {done.returncode}: {done.stderr[-500:]}")
        sums = [[int(number) for number in line.split()] for line in marks.read_text().splitlines()]
    by_run = [[now - before for before, now in zip(*pair, strict=True)] for pair in pairwise(sums)]
    totals = [sum(kinds[: len(KIND_TITLES)]) for kinds in by_run]
    if len(totals) != RUNS or max(totals) - min(totals) > MAX_DIFFERENCE * totals[0]:
        sys.exit(f"{engine} on {cpu}: the inferences differ: {totals} instructions")
    means = [round(sum(kinds) / RUNS) for kinds in zip(*by_run, strict=True)]
    gmacs = round(count_macs(path.read_bytes(), FORMATS[engine]) / 1e9, 4)
    print(
        f"{release} in {engine} on {cpu}: {' and '.join(f'{total:,}' for total in totals)} instructions",
        flush=True,
    )
    return InstructionCount(cpu, done.stdout.split("\n")[0], path.name, gmacs, *means)


def record(counts: list[InstructionCount]) -> None:
    with RECORD.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(InstructionCount)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, counts))


def read_counts() -> list[InstructionCount]:
    with RECORD.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {"cpu": str, "engine": str, "file": str, "gmacs": float}
    return [
        InstructionCount(**{name: kinds.get(name, int)(text) for name, text in row.items()}) for row in rows
    ]


def table(counts: list[InstructionCount]) -> str:
    """Millions of instructions by kind, as Markdown."""
    lines = [
        "Millions of instructions of one inference on one thread, counted in QEMU 7.2:",
        "",
        table_row(
            "model", "processor", "engine", "all", *KIND_TITLES.values(), "for 1,000 MAC", "int8 loops"
        ),
        f"|---|---|---|{'---:|' * (len(KIND_TITLES) + 3)}",
    ]
    for item in counts:
        row = table_row(
            item.release,
            item.cpu.replace("cortex-a", "Cortex-A"),
            item.engine,
            f"{item.total / 1e6:.0f}",
            *(f"{getattr(item, kind) / 1e6:.1f}" for kind in KIND_TITLES),
            f"{item.total / item.gmacs / 1e6:.0f}",
            f"{item.integer_loops / item.total:.0%}",
        )
        lines.append(row)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
