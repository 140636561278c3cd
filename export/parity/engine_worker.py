"""Run a model file in a separate process with one engine and without TensorFlow, as on a device.

tflite-runtime 2.14 cannot read a signature in a process that has loaded TensorFlow, and an engine that
crashes does not end the export.

    python -m export.parity.engine_worker ENGINE MODEL PHOTOS.npy START STOP THREADS OUT.npz

prints one dot to stdout per photo.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO, TextIO

import numpy as np
from numpy.typing import NDArray

from export.tempdir import temporary_dir
from runtime.common.errors import EngineError, UserError
from runtime.inference.engines import ENGINES, import_engine

# Seconds without a photo: far more than a start and a photo take in the slowest engine on a busy machine.
HANG_LIMIT = 1800
ROOT = Path(__file__).resolve().parents[2]  # where `export` and `runtime` are imported from
Outputs = dict[str, NDArray[np.float32]]  # by name, [n, …]


class EngineHangError(UserError):
    """An engine that neither computes nor fails. It ends the export: each other file could hang as long."""


@dataclass(frozen=True)
class EngineOutputs:
    """The unchecked outputs of an engine."""

    engine: str  # name and version
    probabilities: NDArray[np.float32]  # [n, C]
    ms: NDArray[np.float32]  # [n], time of each inference
    known: NDArray[np.float32] | None = None  # [n, 1], if the file has that output
    features: NDArray[np.float32] | None = None  # [n, D]


def run_in_engine(
    data: bytes,
    engine: str,
    photos: Path,
    n: int,
    threads: int,
    step: Callable[[], None] = lambda: None,
    start: int = 0,
) -> EngineOutputs:
    """Runs the model file `data` over `n` photos from `start` on of a .npy of uint8 [N, H, W, 3], one by one.

    Calls `step` after each photo; an exception in `step` stops the engine. Raises EngineError with the
    engine's message when it cannot run the file, EngineHangError when it hangs, and UserError when there is
    no room for temporary files.
    """
    with temporary_dir() as folder:
        model, out = folder / "model", folder / "out.npz"
        model.write_bytes(data)
        command = [sys.executable, "-m", "export.parity.engine_worker", engine]
        command += [str(argument) for argument in (model, photos, start, start + n, threads, out)]
        return run_worker(engine, command, out, step)


def run_worker(
    name: str, command: Sequence[str], out: Path, step: Callable[[], None] = lambda: None
) -> EngineOutputs:
    """Runs a command that writes one character to stdout per photo, and its outputs to the .npz file `out`.

    Calls `step` after each photo; an exception in `step` stops the command. Raises EngineError with the last
    line of its stderr when it fails, and EngineHangError when it hangs.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    errors = out.with_name("stderr")
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert process.stdout is not None
        photos: Queue[bytes] = Queue()
        Thread(target=_forward, args=(process.stdout, photos), daemon=True).start()
        try:
            while _next_photo(name, photos):
                step()
            status = process.wait()
        finally:
            process.kill()
            process.wait()
    if status:
        messages = errors.read_text(errors="replace").strip().splitlines() or ["no message"]
        raise EngineError(f"{name} stopped with status {status}: {messages[-1][:300]}")
    with np.load(out) as result:
        return EngineOutputs(
            str(result["engine"]),
            result["probabilities"],
            result["ms"],
            result.get("known"),
            result.get("features"),
        )


def _forward(stdout: IO[bytes], photos: Queue[bytes]) -> None:
    """Puts each character of the pipe into the queue, and b"" at its end."""
    with stdout:
        while photo := stdout.read(1):
            photos.put(photo)
    photos.put(b"")


def _next_photo(name: str, photos: Queue[bytes]) -> bytes:
    """The next character of the queue. Raises EngineHangError after HANG_LIMIT seconds without one."""
    for _ in range(HANG_LIMIT):  # in waits of a second: none ends while Ctrl-Z stops the export
        with suppress(Empty):
            return photos.get(timeout=1)
    raise EngineHangError(
        f"{name} computed no photo for {HANG_LIMIT // 60} minutes; start again, or leave it out with "
        "--engines or --target"
    )


def join_outputs(parts: Sequence[EngineOutputs]) -> EngineOutputs:
    """The outputs of consecutive parts of the photos as those of all photos."""

    def join(arrays: list[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
        present = [array for array in arrays if array is not None]
        return np.concatenate(present) if len(present) == len(arrays) else None

    return EngineOutputs(
        parts[0].engine,
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.ms for part in parts]),
        join([part.known for part in parts]),
        join([part.features for part in parts]),
    )


def run_photos(
    run: Callable[[NDArray[np.uint8]], Outputs], photos: NDArray[np.uint8], dots: TextIO
) -> Outputs:
    """The outputs for photos [n, H, W, 3], run one by one, and the times `ms` [n]. Prints a dot for each."""
    found: dict[str, list[NDArray[np.float32]]] = {}
    ms = []
    for photo in photos:
        image = np.ascontiguousarray(photo[np.newaxis])
        started = time.perf_counter()
        outputs = run(image)
        ms.append(1000 * (time.perf_counter() - started))
        for name, output in outputs.items():
            found.setdefault(name, []).append(np.array(output[0]))
        print(".", end="", file=dots, flush=True)
    stacked = {name: np.stack(parts) for name, parts in found.items()}
    return {**stacked, "ms": np.array(ms, np.float32)}


def main(argv: list[str]) -> int:
    """Runs in the separate process. Returns 0."""
    engine, model, photos, start, stop, threads, out = argv
    import_engine(engine)  # its error names the next step
    session = ENGINES[engine].load(Path(model).read_bytes(), int(threads))
    part = np.load(photos, mmap_mode="r")[int(start) : int(stop)]
    np.savez(out, engine=session.engine, **run_photos(session, part, sys.stdout))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # Ctrl-C reaches the whole process group; the parent reports it
        sys.exit(130)
