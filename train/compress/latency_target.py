"""`--target-ms`: the largest network whose latency is within a limit.

Latencies come from a table of another board, measured or estimated (train/compress/latency_table.py), or from
`python -m export.latency`, a separate process that converts and times a network of a given shape. train
imports nothing from export.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.common.errors import UserError
from runtime.common.packages import install_command
from train.compress.allocation import NetworkShape
from train.compress.config import CompressSettings
from train.compress.latency_table import BOARDS

REDUCTIONS = (2, 2.5, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)
ROOT = Path(__file__).resolve().parents[2]  # the folder that `python -m export.latency` is found in

MeasureLatency = Callable[[NetworkShape], float]  # milliseconds for one picture


def largest_shape_within(
    settings: CompressSettings,
    choose: Callable[[float], NetworkShape],
    measure: MeasureLatency,
    above: float = 1.0,
) -> NetworkShape:
    """The shape with the lowest of REDUCTIONS over `above` that takes at most `target_ms`, by binary search.

    `choose` returns the shape of a reduction of the uncompressed network. Raises UserError when the highest
    reduction takes longer.
    """
    assert settings.target_ms is not None
    place = settings.engine
    if settings.board:
        place += f" on a {BOARDS[settings.board].name} (estimate)"
    reductions = [each for each in REDUCTIONS if each > above] or REDUCTIONS[-1:]
    low, high, best = 0, len(reductions), None
    while low < high:
        middle = (low + high) // 2
        shape = choose(reductions[middle])
        ms = measure(shape)
        print(
            f"latency: {ms:.1f} ms in {place} with {reductions[middle]:g} times fewer multiplications",
            flush=True,
        )
        if ms <= settings.target_ms:
            best, high = shape, middle
        else:
            low = middle + 1
    if best is None:
        raise UserError(
            f"--target-ms {settings.target_ms:g}: {reductions[-1]:g} times fewer multiplications still take "
            f"{ms:.1f} ms in {place}; give a higher --target-ms"
        )
    return best


@contextmanager
def latency_worker(classes: int, engine: str) -> Iterator[MeasureLatency]:
    """A function that measures the int8 network of a shape in an engine on this machine, on all cores.

    It runs `python -m export.latency`: one JSON line with the request, one with the answer. The function
    raises UserError when the worker reports an error or ends.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, "-m", "export.latency"]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None

        def measure(shape: NetworkShape) -> float:
            request = json.dumps({**asdict(shape), "classes": classes, "engine": engine})
            try:
                print(request, file=process.stdin, flush=True)
                answer = process.stdout.readline()  # type: ignore[union-attr]
            except BrokenPipeError:
                answer = ""
            if not answer:
                errors.seek(0)
                last_line = (errors.read().strip().splitlines() or ["no message"])[-1][:300]
                is_missing = last_line.startswith("ModuleNotFoundError")
                advice = f"; install its packages: {install_command('train,export')}" if is_missing else ""
                raise UserError(f"--target-ms: python -m export.latency ended: {last_line}{advice}")
            return _milliseconds(json.loads(answer))

        try:
            yield measure
        finally:
            process.kill()
            with suppress(BrokenPipeError):  # a request that an ended worker did not read
                process.stdin.close()


def _milliseconds(answer: dict[str, Any]) -> float:
    if "error" in answer:
        raise UserError(f"--target-ms: {answer['error']}")
    return float(answer["ms"])
