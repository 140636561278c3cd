"""`--latency-table`: latencies that were measured on another board."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.common.errors import UserError


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of models on another board: rising GMACs, and milliseconds for one picture."""

    gmacs: tuple[float, ...]
    ms: tuple[float, ...]

    def estimate(self, macs: int) -> float:
        """Milliseconds by linear interpolation; 0 MACs take 0 ms."""
        return float(np.interp(macs / 1e9, (0.0, *self.gmacs), (0.0, *self.ms)))


def read_latency_table(path: Path, engine: str) -> LatencyTable:
    """An engine's rows of a CSV with the columns engine, gmacs and ms. Raises UserError when it has none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if (row.get("engine") or "").split(" ")[0] == engine]
        points = sorted((float(row["gmacs"]), float(row["ms"])) for row in rows)
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or f"{error!r}"
        raise UserError(
            f"--latency-table {path}: cannot be read ({reason}); its columns must be engine, gmacs, ms"
        ) from None
    if not points or not all(0 < value < float("inf") for point in points for value in point):
        raise UserError(
            f"--latency-table {path}: has no positive latency of {engine}; give another --engine or file"
        )
    gmacs, ms = zip(*points, strict=True)
    return LatencyTable(gmacs, ms)
