"""Finds the fastest way to run a model on this machine: `python -m runtime.bench [--csv FILE] [--save]`.

Every file of the model runs in every installed engine that takes it, on 1, 2, 4, … threads up to all cores,
each time in a process of its own. They take turns, in rounds, so that a busy moment slows all of them a
little and not one of them much.
"""

import argparse
import csv
import io
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from runtime.benchmark.worker import BenchResult
from runtime.common.atomic import atomic
from runtime.common.cli import positive_int, run_cli
from runtime.common.cpu_info import board, cpu
from runtime.common.errors import EngineError, ModelError, UserError
from runtime.common.terminal import print_error
from runtime.common.text import display_width, pad, printable
from runtime.inference.engine_cache import EngineSelection, save_selection
from runtime.inference.engines import ENGINES, FORMATS_OF, choose_engine, default_threads, is_installed
from runtime.model_file.index import IndexedFile
from runtime.model_file.loader import KEY_VARIABLE, ModelFile, open_model
from runtime.model_file.selection import choose_model

ROUNDS = 5
RUNS, SECONDS = 200, 20.0  # inferences of each file, engine and number of threads, and their time at most
PLAIN_LINE_EVERY = 10.0  # seconds, where progress is no terminal's


@dataclass(frozen=True)
class BenchRow:
    """One file in one engine on one number of threads. These are the columns of `--csv`.

    benchmarks/reference/ has such a CSV a machine, named after it.
    """

    board: str  # its own name; "virtual machine", or nothing where it has none
    cpu: str  # the processor, and the vector instructions that int8 kernels use
    cores: int  # that this process may use
    os: str  # with the instruction set: "Linux aarch64"
    python: str
    measured: str  # when: ISO 8601, UTC
    model: str  # its name
    file: str
    sha256: str  # of the file
    format: str
    precision: str  # nothing for a file without its model.json
    engine: str  # with its version
    threads: int
    n: int  # inferences that were timed
    median_ms: float  # of one inference
    p95_ms: float
    load_ms: float  # importing the engine, reading, checking and loading the model: median over the rounds
    peak_mb: float | None  # the most physical memory of the process: Python, numpy, the engine, the model
    energy_mj: float | None  # of the whole processor during one inference; nothing where it is not reported


@dataclass(frozen=True)
class Job:
    """A file, an engine's name and a number of threads to measure."""

    path: Path
    engine: str
    threads: int

    def __str__(self) -> str:
        return (
            f"{printable(self.path.name)} in {self.engine}, {self.threads} thread{'s' * (self.threads > 1)}"
        )


def run_bench(
    models: Sequence[ModelFile], runs: int = RUNS, seconds: float = SECONDS
) -> Iterator[tuple[list[BenchRow], dict[Job, str]]]:
    """Gives after each round the rows so far, the fastest first, and why others could not be measured.

    Each job gets `runs` inferences, or what `seconds` allow; its engines start and warm up besides.
    """
    jobs = [
        Job(model.path, engine, threads)
        for model in models
        for engine in ENGINES
        if FORMATS_OF[engine] == model.format and is_installed(engine)
        for threads in thread_counts(default_threads())
    ]
    turns: dict[Job, list[BenchResult]] = {job: [] for job in jobs}
    failed: dict[Job, str] = {}
    by_path = {model.path: model for model in models}
    with _progress(ROUNDS * len(jobs)) as tell:
        for round in range(ROUNDS):
            # In an order of its own, so that none always runs after the same one.
            for job in random.Random(round).sample(jobs, len(jobs)):
                tell(f"round {round + 1} of {ROUNDS}, {job}")
                if job not in failed:
                    try:
                        turns[job].append(_turn(job, -(-runs // ROUNDS), seconds / ROUNDS))
                        if turns[job][-1].sha256 != by_path[job.path].sha256:
                            raise EngineError("the file was replaced meanwhile: measure again")
                    except EngineError as error:
                        failed[job] = str(error)
            rows = [_row(by_path[job.path], job, turns[job]) for job in jobs if job not in failed]
            yield sorted(rows, key=lambda row: row.median_ms), failed


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, … and all cores."""
    return sorted({*(2**power for power in range(cores.bit_length())), cores})


def _turn(job: Job, runs: int, seconds: float) -> BenchResult:
    """Raises EngineError, with the engine's last words."""
    command = [sys.executable, "-m", "runtime.benchmark.worker", str(job.path), job.engine]
    done = subprocess.run(
        [*command, str(job.threads), str(runs), str(seconds)],
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise EngineError(f"stopped with status {done.returncode}: {last[:300]}")
    return BenchResult(**json.loads(done.stdout.splitlines()[-1]))


def _row(model: ModelFile, job: Job, turns: Sequence[BenchResult]) -> BenchRow:
    ms = [each for turn in turns for each in turn.ms]
    peaks = [turn.peak_mb for turn in turns if turn.peak_mb is not None]
    energy = [turn.energy_mj for turn in turns if turn.energy_mj is not None]
    return BenchRow(
        board=board(),
        cpu=cpu(),
        cores=default_threads(),
        os=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        measured=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        model=model.contract.name,
        file=model.path.name,
        sha256=model.sha256,
        format=model.format,
        precision=model.precision,
        engine=turns[0].engine,
        threads=job.threads,
        n=len(ms),
        median_ms=round(statistics.median(ms), 3),
        p95_ms=round(float(np.percentile(ms, 95)), 3),
        load_ms=round(statistics.median(turn.load_ms for turn in turns), 1),
        peak_mb=round(max(peaks), 1) if peaks else None,
        energy_mj=round(sum(energy) / len(ms), 2) if len(energy) == len(turns) else None,
    )


def report(rows: Sequence[BenchRow]) -> str:
    """The machine, and a table whose columns align, the fastest marked."""
    first = rows[0]
    machine = ", ".join(filter(None, [first.board, first.cpu, f"{first.cores} cores", first.os]))
    heading = f"{printable(first.model)} on {machine}, Python {first.python}"
    unreported = "" if any(row.energy_mj is not None for row in rows) else "\nenergy: not reported here"
    return f"{heading}\n\n{_table(rows)}\n{unreported}"


def _table(rows: Sequence[BenchRow]) -> str:
    energy = any(row.energy_mj is not None for row in rows)
    lines = [["file", "engine", "threads", "n", "median ms", "p95 ms", "load ms", "peak MB"]]
    lines[0] += ["mJ", ""] if energy else [""]
    for row in rows:
        times = [f"{row.median_ms:.2f}", f"{row.p95_ms:.2f}", f"{row.load_ms:.0f}"]
        line = [printable(row.file), row.engine, str(row.threads), str(row.n), *times, _figure(row.peak_mb)]
        line += [_figure(row.energy_mj)] if energy else []
        lines.append([*line, "fastest" if row is rows[0] else ""])
    widths = [max(map(display_width, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            pad(cell, columns) if i in (0, 1, len(line) - 1) else cell.rjust(columns)
            for i, (cell, columns) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def to_csv(rows: Sequence[BenchRow]) -> str:
    """The rows' fields; what was not reported is left empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(BenchRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    return file.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 all done, 1 a file did not run in an engine, 2 usage, no model, no engine."""
    return run_cli(lambda: _bench(_arguments(argv)))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    def seconds(text: str) -> float:
        if not 0 < (number := float(text)) < 1e6:
            raise ValueError
        return number

    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench",
        description="Measures a model's files in every installed engine on this machine.",
        epilog="Exit codes: 0 all done, 1 a file did not run in an engine, 2 usage, no model, no engine.",
    )
    parser.add_argument(
        "--model", metavar="PATH", help="folder with a model.json, or a file (default: as runtime.classify)"
    )
    parser.add_argument(
        "--key",
        metavar="PUBLIC.pem",
        help=f"measure only what this key has signed (default: the one that {KEY_VARIABLE} names)",
    )
    parser.add_argument(
        "--runs",
        type=positive_int,
        metavar="N",
        default=RUNS,
        help=f"inferences of each, over {ROUNDS} rounds (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=seconds,
        metavar="S",
        default=SECONDS,
        help="time for the inferences of each (default: %(default)g)",
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write all figures, as benchmarks/reference/"
    )
    parser.add_argument("--save", action="store_true", help="make the fastest what --engine auto takes here")
    return parser.parse_args(argv)


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.key:
        os.environ[KEY_VARIABLE] = arguments.key  # for the processes that measure, too
    choice = choose_model(arguments.model)
    if arguments.save and not choice.candidates:
        raise ModelError(f"{choice.path}: --save needs the model.json that an export wrote beside it")
    if arguments.csv and not os.path.isdir(arguments.csv.absolute().parent):
        raise UserError(f"--csv {arguments.csv}: no such folder; make it first")
    paths = [choice.path.parent / file.file for file in choice.candidates] or [choice.path]
    models = [open_model(path) for path in paths]
    if not any(
        FORMATS_OF[engine] == model.format and is_installed(engine) for engine in ENGINES for model in models
    ):
        choose_engine(models[0].format)  # says what to install
    rows: list[BenchRow] = []
    failed: dict[Job, str] = {}
    stopped = False
    try:
        for so_far in run_bench(models, arguments.runs, arguments.seconds):
            rows, failed = so_far
    except KeyboardInterrupt:
        stopped = True
    if rows:
        print(report(rows))
    for job, reason in failed.items():
        print_error(f"{job}: {reason}")
    if stopped:
        print("stopped: nothing was written or saved", file=sys.stderr)
        return 130
    if rows and arguments.csv:
        _write(arguments.csv, to_csv(rows))
    if rows and arguments.save:
        print(_save(rows, choice.candidates))
    elif rows and choice.candidates:
        print("next: --save makes the fastest what --engine auto takes here")
    return 1 if failed else 0


def _write(path: Path, text: str) -> None:
    try:
        with atomic(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give another --csv") from None


def _save(rows: Sequence[BenchRow], files: Sequence[IndexedFile]) -> str:
    """For the model, and for each of its files alone, which can be named instead of it."""
    try:
        for of in [tuple(files), *((file,) for file in files)]:
            row = next((row for row in rows if row.sha256 in {file.sha256 for file in of}), None)
            if row:
                engine = row.engine.split()[0]
                save_selection(
                    of, EngineSelection(row.sha256, engine, row.threads, row.median_ms, row.measured)
                )
    except (OSError, RuntimeError) as error:
        raise UserError(f"the cache: {error}; give another folder by XDG_CACHE_HOME") from None
    return f"saved: --engine auto takes {rows[0].file} in {rows[0].engine} on {rows[0].threads} threads"


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """Tells what comes next and how long all is still going to take: on a terminal one line that changes."""
    terminal = sys.stderr.isatty()
    started = told = time.monotonic()
    done = 0

    def tell(what: str) -> None:
        nonlocal told, done
        now = time.monotonic()
        left = f", {(now - started) / done * (total - done):.0f} s left" if done else ""
        if terminal:
            print(f"\r\x1b[K{what}{left}", end="", file=sys.stderr, flush=True)
        elif done == 0 or now - told >= PLAIN_LINE_EVERY:
            told = now
            print(f"{what}{left}", file=sys.stderr, flush=True)
        done += 1

    try:
        yield tell
    finally:
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
