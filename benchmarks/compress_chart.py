"""compress.png: accuracy by reduction, and accuracy by latency.

python -m benchmarks.compress_chart        draws it again from compress.csv
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]  # of compress.csv

TABLE = Path(__file__).with_name("compress.csv")
ORIGINAL_GMACS = 15.346630656  # VGG16 at 224x224
CURVE = "distilled, 4 epochs"  # all reductions with one budget
COLOURS = {
    "least squares": "#2f6f4f",
    "smallest weights removed": "#b7791f",
    "random channels removed": "#9aa5b1",
    CURVE: "#7b341e",
}
HIGHLIGHT = "#1a365d"  # the released networks
MOBILE_COLOURS = {"EfficientNet-Lite0": "#2f6f4f", "MobileNetV2": "#b7791f"}
TICKS = (1, 2, 4, 8, 10, 16, 32)


def draw(rows: Sequence[Row], original_gmacs: float, path: Path) -> None:
    """Draw both charts into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    engines = list(dict.fromkeys(row["engine"] for row in rows if row["engine"]))
    _draw_accuracy_by_reduction(left, rows, original_gmacs, engines[0])
    _draw_accuracy_by_latency(right, rows, engines)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e5e8eb")
    figure.savefig(path, dpi=110)


def _draw_accuracy_by_reduction(axis: Any, rows: Sequence[Row], original_gmacs: float, engine: str) -> None:
    shown = [row for row in rows if row["engine"] in ("", engine)]

    def point(row: Row) -> tuple[float, float]:
        return original_gmacs / row["gmacs"], 100 * row["top1"]

    for way, colour in COLOURS.items():
        line = [point(row) for row in shown if row["way"] == way]
        axis.plot(*zip(*line, strict=True), marker="o", color=colour, label=way)
    for row in shown:
        if row["reduce"] and row["way"] not in COLOURS:
            axis.plot(*point(row), "*", ms=13, color=HIGHLIGHT)
            axis.annotate(_short(row["way"]), point(row), (6, 5), textcoords="offset points", fontsize=8)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="times fewer multiplications", ylabel="top-1 on test photos, %", title="float32")
    axis.set_xticks(TICKS, [f"{tick}" for tick in TICKS])
    axis.legend(frameon=False, loc="lower left")


def _draw_accuracy_by_latency(axis: Any, rows: Sequence[Row], engines: Sequence[str]) -> None:
    def point(row: Row) -> tuple[float, float]:
        return row["ms"], 100 * row["int8_top1"]

    for engine, marker in zip(engines, "os", strict=False):
        first = engine == engines[0]
        of_engine = [row for row in rows if row["engine"] == engine and row["ms"]]
        line = sorted(point(row) for row in of_engine if row["way"] in ("uncompressed", CURVE))
        style = {"marker": marker, "color": COLOURS[CURVE], "alpha": 1 if first else 0.5}
        axis.plot(*zip(*line, strict=True), label=engine, **style)
        for row in of_engine:
            if row["way"] in (*COLOURS, "uncompressed"):
                continue
            name, _, training = row["way"].partition(", ")
            if colour := MOBILE_COLOURS.get(name):
                face = "white" if training == "frozen" else colour
                label = row["way"] if first else None
                axis.plot(*point(row), marker, ms=9, color=colour, markerfacecolor=face, label=label)
                continue
            axis.plot(*point(row), marker, ms=9, color=HIGHLIGHT)
            epochs = _short(row["way"]).removesuffix(" epochs")
            axis.annotate(epochs, point(row), (-5, 8), textcoords="offset points", fontsize=8)
    axis.set_xscale("log")
    axis.set_xticks((1, 2, 5, 10, 20), ("1", "2", "5", "10", "20"))
    axis.minorticks_off()
    axis.plot([], [], "o", ms=9, color=HIGHLIGHT, label="released, 40 and 80 epochs")
    axis.set(xlabel="ms a photo, int8, all cores", title="int8 in the engines")
    axis.legend(frameon=False, loc="lower right", fontsize=8)


def _short(way: str) -> str:
    """The label of a released network."""
    return way.removeprefix("distilled, ")


def read_rows(path: Path) -> list[Row]:
    """The rows of compress.csv, with numbers as floats and empty cells as None."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {
                name: cell if name in ("way", "engine") else float(cell) if cell else None
                for name, cell in row.items()
            }
            for row in csv.DictReader(file)
        ]


if __name__ == "__main__":
    draw(read_rows(TABLE), ORIGINAL_GMACS, TABLE.with_suffix(".png"))
