"""The benchmark's results as a table and as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from runtime.common.text import align_columns, escape_formulas, printable

LEFT_ALIGNED = {"file", "engine", ""}  # columns


@dataclass(frozen=True)
class BenchRow:
    """One file in one engine on one number of threads; the fields are the columns of `--csv`.

    benchmarks/reference/ holds one such CSV file per machine.
    """

    board: str  # such as "Raspberry Pi 5 Model B Rev 1.0", "virtual machine", or ""
    cpu: str  # the processor, and the vector instructions that int8 kernels use
    cores: int  # available to this process
    os: str  # with the instruction set, such as "Linux aarch64"
    python: str
    measured: str  # ISO 8601, UTC
    model: str  # its name
    file: str
    sha256: str  # of the file
    format: str
    precision: str  # "" for a file without a model.json
    engine: str  # with its version
    threads: int
    n: int  # number of timed inferences
    median_ms: float  # of one inference
    p95_ms: float
    load_ms: float  # to import the engine and to read, verify and load the model: median over the rounds
    peak_mb: float | None  # highest physical memory of the process: Python, numpy, the engine, the model
    energy_mj: float | None  # of the whole processor, per inference; None where it is not reported


def format_report(rows: Sequence[BenchRow]) -> str:
    """Returns the machine and the table; the first row is marked as the fastest."""
    first = rows[0]
    machine = ", ".join(filter(None, [first.board, first.cpu, f"{first.cores} cores", first.os]))
    heading = f"{printable(first.model)} on {machine}, Python {first.python}"
    footer = "" if any(row.energy_mj is not None for row in rows) else "\nenergy: not reported here"
    return f"{heading}\n\n{_format_table(rows)}\n{footer}"


def to_csv(rows: Sequence[BenchRow]) -> str:
    """Returns the rows as CSV; a value that was not reported is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(BenchRow)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        # Names of a model and its file are the text of its author.
        names = {"model": row.model, "file": row.file}
        writer.writerow(asdict(row) | {key: escape_formulas(printable(name)) for key, name in names.items()})
    return text.getvalue()


def _format_table(rows: Sequence[BenchRow]) -> str:
    cells = [_cells(row, is_fastest=row is rows[0]) for row in rows]
    if all(row.energy_mj is None for row in rows):
        for row in cells:
            del row["mJ"]
    lines = [list(cells[0]), *(list(row.values()) for row in cells)]
    return "\n".join(align_columns(lines, left=LEFT_ALIGNED))


def _cells(row: BenchRow, is_fastest: bool) -> dict[str, str]:
    """The cells of a table row by column."""
    return {
        "file": printable(row.file),
        "engine": row.engine,
        "threads": str(row.threads),
        "n": str(row.n),
        "median ms": f"{row.median_ms:.2f}",
        "p95 ms": f"{row.p95_ms:.2f}",
        "load ms": f"{row.load_ms:.0f}",
        "peak MB": _format_optional(row.peak_mb),
        "mJ": _format_optional(row.energy_mj),
        "": "fastest" if is_fastest else "",
    }


def _format_optional(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
