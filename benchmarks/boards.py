"""Estimates the frame rates on Raspberry Pi boards from counted instructions.

    python -m benchmarks.boards    # reads instructions.csv; writes boards.csv and boards.md; takes a second

No board was measured. Milliseconds are instructions / (clock x instructions per cycle), for a range of
instructions per cycle:

- the fast end is the processor's limit for the counted kinds of instructions (LIMITS). No run is faster.
- the slow end is the rate at which another engine, ncnn, runs an int8 network with as many MACs on the same
  board (GOOGLENET), as its authors published it. It has many small layers, which are slower per MAC than the
  3x3 convolutions of VGG16.

The released model has 1.53 GMAC, GoogLeNet 1.58. Four threads are faster than one by the factors that ncnn
published: the largest of an int8 network at the fast end, GoogLeNet's at the slow end.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.instructions import InstructionCount, read_counts
from benchmarks.markdown_table import table_head, table_row
from runtime.inference.engines import engine_name
from train.compress.latency_table import BOARDS

FOLDER = Path(__file__).parent
RECORD = FOLDER / "boards.csv"
TABLE = FOLDER / "boards.md"
GOOGLENET_GMACS = 1.58  # of BVLC GoogLeNet with 224 x 224 pixels


@dataclass(frozen=True)
class Limits:
    """The instructions that a core can issue in a cycle."""

    all: int
    simd_arithmetic: int  # 128 bits
    multiplies: int  # integer SIMD multiplies, except dot products


# Cortex-A72 and A76: Arm's Software Optimization Guides (UAN 0016A; PJDOC-466751330-7215), pipelines and
# throughput of the ASIMD integer instructions. There is no guide for the A53: LLVM's scheduling model
# (AArch64SchedA53.td) has two issue slots, and in Google's measurements of matrix-product kernels
# (gemmlowp, standalone/neon-gemm-kernel-benchmark.cc, with a linked spreadsheet) an A53 of 1.44 GHz runs 0.81
# UMLAL of 128 bits per cycle, so more than one cycle for each is needed, and fewer than two.
LIMITS = {
    "cortex-a53": Limits(2, 1, 1),
    "cortex-a72": Limits(3, 2, 1),
    "cortex-a76": Limits(4, 2, 1),
}


@dataclass(frozen=True)
class GoogLeNet:
    """ms of googlenet_int8 in ncnn on one thread and on four. Source: ncnn, benchmark/README.md."""

    ghz: float
    one_thread: float
    four_threads: float

    @property
    def macs_per_cycle(self) -> float:
        return GOOGLENET_GMACS / (self.one_thread / 1000) / self.ghz

    @property
    def speedup(self) -> float:
        return self.one_thread / self.four_threads


GOOGLENET = {
    "zero2": GoogLeNet(1.0, 664.15, 251.63),
    "pi3": GoogLeNet(1.4, 425.78, 189.21),
    "pi4": GoogLeNet(1.8, 210.00, 101.25),
    # A Cortex-A78AE (Jetson AGX Orin), a successor of the A76 with the same two 128-bit pipelines and the
    # same dot products: the source has no Raspberry Pi 5.
    "pi5": GoogLeNet(2.2, 47.49, 16.32),
}


@dataclass(frozen=True)
class Hardware:
    cpu: str
    ghz: tuple[float, float]  # the lowest and the highest maximum clock of the boards with this name
    best_speedup: float  # of four threads: the largest of an int8 network in the same source
    speedup: float  # GoogLeNet's


HARDWARE = {
    "zero2": Hardware("cortex-a53", (1.0, 1.0), 286.75 / 91.03, GOOGLENET["zero2"].speedup),
    "pi3": Hardware("cortex-a53", (1.4, 1.4), 181.91 / 67.03, GOOGLENET["pi3"].speedup),
    "pi4": Hardware("cortex-a72", (1.5, 1.8), 84.82 / 34.37, GOOGLENET["pi4"].speedup),
    # The AGX Orin has several times the memory bandwidth of a Pi 5, so the slow end has the Pi 4's factor.
    "pi5": Hardware("cortex-a76", (2.4, 2.4), 477.33 / 133.78, GOOGLENET["pi4"].speedup),
}


@dataclass(frozen=True)
class Estimate:
    release: str
    board: str
    engine: str  # with its version
    gmacs: float
    low_ipc: float
    high_ipc: float
    one_thread_ms: float  # the fast end
    one_thread_ms_at_most: float  # the slow end
    four_threads_ms: float
    four_threads_ms_at_most: float


def main() -> int:
    estimates = list(estimate_all(read_counts()))
    with RECORD.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Estimate)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, estimates))
    TABLE.write_text(table(estimates), "utf-8")
    return 0


def estimate_all(counts: list[InstructionCount]) -> Iterator[Estimate]:
    """Each board and engine. At the slow end, an engine with more instructions than LiteRT takes longer.

    An engine with fewer instructions does not take less time: on the A53, LiteRT avoids instructions that
    this core runs slowly.
    """
    per_mac = {
        (count.release, count.cpu, engine_name(count.engine)): count.total / count.gmacs / 1e9
        for count in counts
    }
    for name, board in HARDWARE.items():
        for count in counts:
            if count.cpu == board.cpu:
                engines = ("litert", engine_name(count.engine))
                fewest = min(per_mac[count.release, board.cpu, engine] for engine in engines)
                yield estimate(name, board, count, fewest * GOOGLENET[name].macs_per_cycle)


def estimate(name: str, board: Hardware, count: InstructionCount, low_ipc: float) -> Estimate:
    high_ipc = count.total / fewest_cycles(count)
    fast = count.total / high_ipc / board.ghz[1] / 1e6
    slow = count.total / low_ipc / board.ghz[0] / 1e6
    times = (fast, slow, fast / board.best_speedup, slow / board.speedup)
    rounded = (round(value, 2) for value in (low_ipc, high_ipc, *times))
    return Estimate(count.release, name, count.engine, count.gmacs, *rounded)


def fewest_cycles(count: InstructionCount) -> float:
    """The cycles that the most limited kind of instruction needs, if nothing else costs time."""
    limits = LIMITS[count.cpu]
    return max(
        count.total / limits.all,
        count.simd_arithmetic / limits.simd_arithmetic,
        count.multiply / limits.multiplies,
    )


def table(estimates: list[Estimate]) -> str:
    """Ranges of ms and frames/s of the released models, as Markdown."""
    lines = [
        "**Estimate, not measured.** The released models, int8, on 1 and on 4 threads:",
        "",
        table_head(
            *("board", "model", "engine", "instructions per cycle"),
            *("1 thread, ms", "4 threads, ms", "4 threads, 1/s"),
        ),
    ]
    for item in estimates:
        board = HARDWARE[item.board]
        processor = board.cpu.replace("cortex-a", "Cortex-A")
        row = table_row(
            f"{BOARDS[item.board].name}, {processor}, {span(*board.ghz, digits=1)} GHz",
            item.release,
            item.engine,
            span(item.low_ipc, item.high_ipc, digits=1),
            span(item.one_thread_ms, item.one_thread_ms_at_most),
            span(item.four_threads_ms, item.four_threads_ms_at_most),
            span(1000 / item.four_threads_ms_at_most, 1000 / item.four_threads_ms),
        )
        lines.append(row)
    return "\n".join(lines) + "\n"


def span(low: float, high: float, digits: int = 0) -> str:
    return " to ".join(dict.fromkeys(f"{value:.{digits}f}" for value in (low, high)))


if __name__ == "__main__":
    sys.exit(main())
