"""`--latency-table` and `--board`: latencies on another board, measured there or estimated.

No board of BOARDS was measured. Their figures are the slow end of the estimate for four threads in
benchmarks/boards.csv, which comes from counted instructions.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from runtime.common.errors import UserError
from runtime.inference.engines import engine_name

MAX_FALL = 1.1  # of the latency of a smaller model over that of a larger one: timings vary
MAX_GMACS = 16.0  # VGG16 with 224 x 224 pixels has 15.35


@dataclass(frozen=True)
class BoardEstimate:
    """The milliseconds per GMAC that an int8 model takes on a Raspberry Pi, by engine."""

    name: str
    ms_per_gmac: Mapping[str, float]


BOARDS = {
    "zero2": BoardEstimate("Raspberry Pi Zero 2 W", {"litert": 159.3, "onnx": 159.3}),
    "pi3": BoardEstimate("Raspberry Pi 3B+", {"litert": 119.8, "onnx": 119.8}),
    "pi4": BoardEstimate("Raspberry Pi 4", {"litert": 76.9, "onnx": 88.7}),
    "pi5": BoardEstimate("Raspberry Pi 5", {"litert": 13.3, "onnx": 17.3}),
}


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of models on another board: rising GMACs, and milliseconds for one picture."""

    gmacs: tuple[float, ...]
    ms: tuple[float, ...]

    def estimate(self, macs: int) -> float:
        """Milliseconds by linear interpolation; 0 MACs take 0 ms. A network that is larger than all
        networks of the table takes as long for each MAC as the largest of them.
        """
        gmacs = macs / 1e9
        if gmacs > self.gmacs[-1]:
            return self.ms[-1] * gmacs / self.gmacs[-1]
        return float(np.interp(gmacs, (0.0, *self.gmacs), (0.0, *self.ms)))


def estimated_latency_table(board: str, engine: str) -> LatencyTable:
    """The estimate for a key of BOARDS. Raises UserError when it has no figure for the engine."""
    rate = BOARDS[board].ms_per_gmac.get(engine)
    if rate is None:
        raise UserError(
            f"--board {board}: has no estimate for {engine}; give --engine litert or onnx, or measure on the "
            "board and give --latency-table"
        )
    return LatencyTable((MAX_GMACS,), (MAX_GMACS * rate,))


def estimate_note(board: str) -> str:
    """One line that says that the latency was not measured, and how to measure it."""
    return (
        f"note: the latency on a {BOARDS[board].name} with 4 threads is an estimate, the slow end of a "
        "range; to measure it, export the model and run python -m runtime.bench on the board"
    )


def read_latency_table(path: Path, engine: str) -> LatencyTable:
    """An engine's rows of a CSV with the columns engine, gmacs and ms, without rows whose ms is empty.

    Raises UserError when it has none, or when they do not rise: rows of several kinds of models, or of
    several numbers of threads, cannot be interpolated.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.DictReader(file) if engine_name(row["engine"]) == engine]
        points = sorted((float(row["gmacs"]), float(row["ms"])) for row in rows if row["ms"])
    except (OSError, ValueError, TypeError, AttributeError, KeyError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or f"{error!r}"
        raise UserError(
            f"--latency-table {path}: cannot be read ({reason}); its columns must be engine, gmacs, ms"
        ) from None
    if not points or not all(0 < value < float("inf") for point in points for value in point):
        raise UserError(
            f"--latency-table {path}: has no positive latency of {engine}; give another --engine or file"
        )
    for (small, longer), (large, shorter) in combinations(points, 2):
        if longer > MAX_FALL * shorter or (small == large and shorter > MAX_FALL * longer):
            raise UserError(
                f"--latency-table {path}: {small:g} GMAC take {longer:g} ms and {large:g} GMAC {shorter:g} ms"
                "; give rows of one kind of model, with one number of threads"
            )
    gmacs, ms = zip(*points, strict=True)
    return LatencyTable(gmacs, tuple(np.maximum.accumulate(ms).tolist()))
