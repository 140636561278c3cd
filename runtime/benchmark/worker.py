"""Measures one model file in one engine; `runtime.bench` starts it as a process for each measurement.

    python -m runtime.benchmark.worker FILE ENGINE THREADS RUNS SECONDS

It prints a BenchResult as one JSON line. The process makes memory and load time measurable, and separates
engines whose libraries share symbols.
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
from numpy.typing import NDArray

from runtime.common.errors import UserError
from runtime.inference.engines import load_session
from runtime.model_file.loader import open_model

WARM_UP_RUNS, WARM_UP_SECONDS = 5, 1.0  # not counted; at least one run
POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class BenchResult:
    """The measurements of one process."""

    engine: str  # with its version
    sha256: str  # of the file
    load_ms: float
    ms: tuple[float, ...]  # of each inference
    peak_mb: float | None
    energy_mj: float | None  # of all inferences


def run_worker(path: Path, engine: str, threads: int, runs: int, seconds: float) -> BenchResult:
    """Loads the model, warms up, and times `runs` inferences, or fewer in `seconds` but at least one.

    Raises ModelError or EngineError.
    """
    started = time.perf_counter()
    model = open_model(path)
    session = load_session(model, engine, threads)
    load_ms = _ms_since(started)
    image = _random_image(*model.contract.input_size)
    started = time.perf_counter()
    for _ in range(WARM_UP_RUNS):
        session(image)
        if _ms_since(started) > 1000 * WARM_UP_SECONDS:
            break
    ms: list[float] = []
    energy_before, started = energy_uj(), time.perf_counter()
    while not ms or (len(ms) < runs and _ms_since(started) < 1000 * seconds):
        run_started = time.perf_counter()
        session(image)
        ms.append(_ms_since(run_started))
    energy = energy_used_mj(energy_before, energy_uj())
    return BenchResult(session.engine, model.sha256, load_ms, tuple(ms), peak_mb(), energy)


def main() -> None:
    """Measures as the arguments of the command line say, and prints the result, or an error of one line."""
    try:
        path, engine, threads, runs, seconds = sys.argv[1:]
        print(json.dumps(asdict(run_worker(Path(path), engine, int(threads), int(runs), float(seconds)))))
    except UserError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:  # Ctrl-C reaches the whole process group; the parent reports it
        sys.exit(130)


def peak_mb() -> float | None:
    """Returns the highest physical memory of this process in MB; None if the system does not report it."""
    with suppress(OSError, StopIteration):  # Linux: getrusage would count the parent process too
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    if sys.platform == "darwin":
        from resource import RUSAGE_SELF, getrusage

        return getrusage(RUSAGE_SELF).ru_maxrss / 1e6
    return None


def energy_uj() -> dict[Path, int]:
    """Returns the energy counter of each processor in microjoules, by its folder (RAPL, Linux powercap).

    Empty if none is reported, or if only root may read it.
    Source: https://www.kernel.org/doc/html/latest/power/powercap/powercap.html
    """
    counters = {}
    with suppress(OSError, ValueError):
        for domain in sorted(POWERCAP.glob("intel-rapl:*")):
            if (domain / "name").read_text().startswith("package"):  # others are parts of it
                counters[domain] = int((domain / "energy_uj").read_text())
        return counters
    return {}


def energy_used_mj(before: Mapping[Path, int], after: Mapping[Path, int]) -> float | None:
    """Returns the millijoules between two readings, whose counters wrap at a maximum; None without them."""
    if not before or before.keys() != after.keys():
        return None
    total = 0
    for domain, start in before.items():
        used = after[domain] - start
        total += used if used >= 0 else used + int((domain / "max_energy_range_uj").read_text())
    return total / 1000


def _random_image(height: int, width: int) -> NDArray[np.uint8]:
    """Returns uint8 [1, H, W, 3]. numpy.random would add to the process's memory."""
    data = random.Random(0).randbytes(height * width * 3)
    return np.frombuffer(data, np.uint8).reshape(1, height, width, 3)


def _ms_since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
