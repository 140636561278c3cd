"""Times one model file in one engine, in a process of its own: what `runtime.bench` runs again and again.

    python -m runtime.turn FILE ENGINE THREADS RUNS SECONDS     prints a Turn as one line of JSON

The process is the measure of memory and load time, and keeps engines apart, whose libraries share symbols.
"""

import json
import random
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from runtime.common.errors import UserError
from runtime.inference.engines import load_session
from runtime.model_file.loader import open_model

WARM_RUNS, WARM_SECONDS = 5, 1.0  # not counted; the first of them always runs
POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class BenchResult:
    engine: str  # with its version
    sha256: str  # of the file that was run
    load_ms: float
    ms: tuple[float, ...]  # of each inference
    peak_mb: float | None
    energy_mj: float | None  # of all inferences


def run_worker(path: Path, engine: str, threads: int, runs: int, seconds: float) -> BenchResult:
    """Loads, warms up, then infers `runs` times, or as often as `seconds` allow but once.

    Raises ModelError or EngineError.
    """
    started = time.perf_counter()
    model = open_model(path)
    run = load_session(model, engine, threads)
    load_ms = _ms_since(started)
    height, width = model.contract.input_size
    pixels = random.Random(0).randbytes(
        height * width * 3
    )  # numpy's generators would take memory of their own
    image = np.frombuffer(pixels, np.uint8).reshape(1, height, width, 3)
    started = time.perf_counter()
    for _ in range(WARM_RUNS):
        run(image)
        if _ms_since(started) > 1000 * WARM_SECONDS:
            break
    ms: list[float] = []
    before, started = energy_uj(), time.perf_counter()
    while not ms or (len(ms) < runs and _ms_since(started) < 1000 * seconds):
        asked = time.perf_counter()
        run(image)
        ms.append(_ms_since(asked))
    used = energy_used_mj(before, energy_uj())
    return BenchResult(run.engine, model.sha256, load_ms, tuple(ms), peak_mb(), used)


def peak_mb() -> float | None:
    """The most physical memory that this process had, in MB; None where the system does not tell."""
    with suppress(OSError, StopIteration):  # Linux: unlike getrusage's, this does not count the parent's
        status = Path("/proc/self/status").read_text()
        return (
            next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
            * 1024
            / 1e6
        )
    if sys.platform == "darwin":
        from resource import RUSAGE_SELF, getrusage

        return getrusage(RUSAGE_SELF).ru_maxrss / 1e6
    return None


def energy_uj() -> dict[Path, int]:
    """What each processor has used, microjoules, by its folder (RAPL, through Linux's powercap).

    Empty where nothing reports it, and where only root may read it.
    https://www.kernel.org/doc/html/latest/power/powercap/powercap.html
    """
    counted = {}
    with suppress(OSError, ValueError):
        for domain in sorted(POWERCAP.glob("intel-rapl:*")):
            if (domain / "name").read_text().startswith("package"):  # not their parts, which they include
                counted[domain] = int((domain / "energy_uj").read_text())
        return counted
    return {}


def energy_used_mj(before: Mapping[Path, int], after: Mapping[Path, int]) -> float | None:
    """Millijoules between two readings; the counters begin anew at a maximum."""
    if not before or before.keys() != after.keys():
        return None
    total = 0
    for domain, start in before.items():
        used = after[domain] - start
        total += used if used >= 0 else used + int((domain / "max_energy_range_uj").read_text())
    return total / 1000


def _ms_since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    try:
        path, engine, threads, runs, seconds = sys.argv[1:]
        print(json.dumps(asdict(run_worker(Path(path), engine, int(threads), int(runs), float(seconds)))))
    except UserError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:  # the whole group was interrupted, and the parent says so
        sys.exit(130)
