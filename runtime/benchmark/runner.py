"""run_benchmark: measures model files in every engine and number of threads, each in its own process."""

import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from runtime.benchmark.report import BenchRow
from runtime.benchmark.worker import BenchResult
from runtime.common.cpu_info import board_name, cpu_name
from runtime.common.errors import EngineError
from runtime.common.isolated_python import isolated_python
from runtime.common.text import pluralize, printable
from runtime.inference.engines import ENGINES, default_threads, is_installed
from runtime.model_file.loader import ModelFile

ROUNDS = 5
DEFAULT_RUNS, DEFAULT_SECONDS = 200, 20.0  # per job: inferences, and the limit of their time
START_WORKER = "from runtime.benchmark.worker import main; main()"
LOG_INTERVAL = 10.0  # seconds between progress lines that are not on a terminal


@dataclass(frozen=True)
class Job:
    """A combination to measure."""

    path: Path
    engine: str
    threads: int

    def __str__(self) -> str:
        return f"{printable(self.path.name)} in {self.engine} on {pluralize(self.threads, 'thread')}"


@dataclass(frozen=True)
class BenchResults:
    """The results after a round."""

    rows: tuple[BenchRow, ...]  # fastest first
    failed: dict[Job, str]  # the reasons


def run_benchmark(
    models: Sequence[ModelFile], runs: int = DEFAULT_RUNS, seconds: float = DEFAULT_SECONDS
) -> Iterator[BenchResults]:
    """Yields the results so far after each of ROUNDS rounds.

    Each job gets `runs` inferences, or fewer in `seconds`, plus the time to start and warm up its engine.
    Rounds spread a busy moment of the machine over all jobs.
    """
    jobs = _list_jobs(models)
    by_path = {model.path: model for model in models}
    results: dict[Job, list[BenchResult]] = {job: [] for job in jobs}
    failed: dict[Job, str] = {}
    with _progress(ROUNDS * len(jobs)) as report_progress:
        for round in range(ROUNDS):
            # Another order in each round: no job always follows the same job.
            for job in random.Random(round).sample(jobs, len(jobs)):
                report_progress(f"round {round + 1} of {ROUNDS}, {job}")
                if job not in failed:
                    try:
                        result = _run_worker(job, -(-runs // ROUNDS), seconds / ROUNDS)
                        _check_unchanged(result, by_path[job.path])
                        results[job].append(result)
                    except EngineError as error:
                        failed[job] = str(error)
            rows = [_to_row(by_path[job.path], job, results[job]) for job in jobs if job not in failed]
            yield BenchResults(tuple(sorted(rows, key=lambda row: row.median_ms)), dict(failed))


def thread_counts(cores: int) -> list[int]:
    """Returns 1, 2, 4, … and the number of cores."""
    return sorted({*(2**power for power in range(cores.bit_length())), cores})


def _list_jobs(models: Sequence[ModelFile]) -> list[Job]:
    return [
        Job(model.path, engine, threads)
        for model in models
        for engine in ENGINES
        if ENGINES[engine].format == model.format and is_installed(engine)
        for threads in thread_counts(default_threads())
    ]


def _run_worker(job: Job, runs: int, seconds: float) -> BenchResult:
    """Measures a job in a process. Raises EngineError with the last line that the process printed."""
    arguments = (str(job.path), job.engine, str(job.threads), str(runs), str(seconds))
    done = subprocess.run(
        isolated_python(START_WORKER, *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise EngineError(f"stopped with status {done.returncode}: {last_line[:300]}")
    return BenchResult(**json.loads(done.stdout.splitlines()[-1]))


def _check_unchanged(result: BenchResult, model: ModelFile) -> None:
    if result.sha256 != model.sha256:
        raise EngineError("the file was replaced during the benchmark: run it again")


def _to_row(model: ModelFile, job: Job, results: Sequence[BenchResult]) -> BenchRow:
    ms = [each for result in results for each in result.ms]
    peaks = [result.peak_mb for result in results if result.peak_mb is not None]
    energy = [result.energy_mj for result in results if result.energy_mj is not None]
    return BenchRow(
        board=board_name(),
        cpu=cpu_name(),
        cores=default_threads(),
        os=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        measured=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        model=model.contract.name,
        file=model.path.name,
        sha256=model.sha256,
        format=model.format,
        precision=model.precision,
        engine=results[0].engine,
        threads=job.threads,
        n=len(ms),
        median_ms=round(statistics.median(ms), 3),
        p95_ms=round(float(np.percentile(ms, 95)), 3),
        load_ms=round(statistics.median(result.load_ms for result in results), 1),
        peak_mb=round(max(peaks), 1) if peaks else None,
        energy_mj=round(sum(energy) / len(ms), 2) if len(energy) == len(results) else None,
    )


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """Prints steps and the estimated time left on standard error; on a terminal, in one redrawn line."""
    is_terminal = sys.stderr.isatty()
    started = printed = time.monotonic()
    done = 0

    def report_progress(step: str) -> None:
        nonlocal printed, done
        now = time.monotonic()
        left = f", {(now - started) / done * (total - done):.0f} s left" if done else ""
        if is_terminal:
            print(f"\r\x1b[K{step}{left}", end="", file=sys.stderr, flush=True)
        elif done == 0 or now - printed >= LOG_INTERVAL:
            printed = now
            print(f"{step}{left}", file=sys.stderr, flush=True)
        done += 1

    try:
        yield report_progress
    finally:
        if is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
