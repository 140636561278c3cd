"""Measures what decoding in a worker process costs, and what hostile pictures cost.

    python -m benchmarks.decoder > benchmarks/decoder.md

Good pictures: the same photos are decoded in turn in this process and in a worker; the time includes sending
the file and the pixels. Hostile pictures: the processor time and the peak resident memory of the workers, as
the kernel reports them, each in a new process. Exit code 1 if a limit is exceeded.
"""

from __future__ import annotations

import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import describe_machine
from benchmarks.markdown_table import table_head, table_row
from runtime.preprocess.decode_pool import DecodePool
from runtime.preprocess.picture import read_picture
from tests.helpers import ROOT
from tests.runtime.preprocess.hostile import GOOD, HOSTILE
from tests.runtime.preprocess.test_decode_pool import MEASURE

SIZE = (224, 224)
MAX_ADDED_MS = 3.0
MAX_SECONDS, MAX_MB = 9.0, 620.0  # of one hostile picture
PHOTO = (4000, 3000)


def main() -> int:
    print(f"Measured on {describe_machine()}.\n")
    failed = measure_good_pictures()
    print()
    return 1 if failed + measure_hostile_pictures() else 0


def measure_good_pictures() -> int:
    """Prints the table; returns how many limits were exceeded."""
    pool = DecodePool(1)
    pool.decode(GOOD, SIZE)  # starts the worker
    failed = 0
    print(table_head("picture", "in the process, ms", "in a worker, ms", "added, ms", "limit", "passed"))
    pictures = {
        "331 x 243, 20 kB": ((ROOT / "docs" / "sunflower.jpg").read_bytes(), 200),
        "12 megapixels, 5 MB": (large_photo(), 20),
    }
    for name, (data, repeats) in pictures.items():
        here, there = [], []
        for _ in range(repeats):
            here.append(milliseconds(lambda data=data: read_picture(data, SIZE)))  # type: ignore[misc]
            there.append(milliseconds(lambda data=data: pool.decode(data, SIZE)))  # type: ignore[misc]
        one, other = statistics.median(here), statistics.median(there)
        is_small = name == next(iter(pictures))
        passed = not is_small or other - one <= MAX_ADDED_MS
        failed += not passed
        limit = [f"≤ {MAX_ADDED_MS:.0f}", "yes" if passed else "**no**"] if is_small else ["", ""]
        print(table_row(name, f"{one:.2f}", f"{other:.2f}", f"{other - one:.2f}", *limit), flush=True)
    pool.close()
    return failed


def measure_hostile_pictures() -> int:
    """Prints the table; returns how many limits were exceeded."""
    failed = 0
    print(table_head("hostile picture", "MB", "processor, s", "peak, MB", "passed", "result"))
    with tempfile.TemporaryDirectory() as folder:
        hostile, good = Path(folder, "hostile"), Path(folder, "good")
        good.write_bytes(GOOD)
        for name, make in HOSTILE.items():
            data = make()
            hostile.write_bytes(data)
            run = [sys.executable, "-c", MEASURE, str(hostile), str(good)]
            done = subprocess.run(run, capture_output=True, check=True, text=True)
            result, figures = done.stdout.splitlines()
            _, seconds, megabytes, _ = map(float, figures.split())
            passed = seconds <= MAX_SECONDS and megabytes <= MAX_MB
            failed += not passed
            result = "decoded" if result.startswith("(") else result.removeprefix(f"{hostile}: ")
            row = table_row(
                name,
                f"{len(data) / 1e6:.2f}",
                f"{seconds:.2f}",
                f"{megabytes:.0f}",
                "yes" if passed else "**no**",
                result,
            )
            print(row, flush=True)
    return failed


def large_photo() -> bytes:
    """A photo of 12 megapixels with the noise of a camera."""
    noise = np.random.default_rng(0).normal(120, 12, (PHOTO[1], PHOTO[0], 1))
    file = io.BytesIO()
    Image.fromarray(np.repeat(noise.clip(0, 255).astype(np.uint8), 3, axis=2)).save(file, "JPEG", quality=92)
    return file.getvalue()


def milliseconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    raise SystemExit(main())
