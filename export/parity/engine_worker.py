"""Run a model file as a device would: in a process of its own, with one engine and no TensorFlow.

TensorFlow in the process would change the result: tflite-runtime 2.14 cannot read a signature when
TensorFlow's symbols are loaded before its own. It also turns an engine's crash into an answer.

    python -m export.device ENGINE MODEL PHOTOS.npy N THREADS OUT.npz     one dot on stdout a photo
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.tempdir import temporary_dir
from runtime.common.errors import EngineError
from runtime.inference.engines import ENGINES

ROOT = Path(__file__).resolve().parents[2]  # where `export` and `runtime` are imported from


@dataclass(frozen=True)
class EngineOutputs:
    """What an engine said to each photo, in its own words: nothing here is checked."""

    engine: str  # with its version
    probabilities: NDArray[np.float32]  # [n, C]
    ms: NDArray[np.float32]  # [n], of each inference
    known: NDArray[np.float32] | None = None  # [n, 1], when the file has that output


def run_in_engine(
    data: bytes, engine: str, photos: Path, n: int, threads: int, step: Callable[[], None] = lambda: None
) -> EngineOutputs:
    """Runs the model file `data` over the first `n` photos of a .npy of uint8 [N, H, W, 3], one at a time.

    `step` is called after each photo; what it raises stops the engine. Raises EngineError with the engine's
    own words when it cannot run the file, UserError when there is no room for temporary files.
    """
    with temporary_dir() as folder:
        model, out, errors = (folder / name for name in ("model", "out.npz", "stderr"))
        model.write_bytes(data)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "export.parity.engine_worker", engine]
        command += [str(argument) for argument in (model, photos, n, threads, out)]
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": path},
            )
            assert process.stdout is not None
            try:
                while process.stdout.read(1):
                    step()
                status = process.wait()
            finally:
                process.kill()
                process.stdout.close()
                process.wait()
        if status:
            said = errors.read_text(errors="replace").strip().splitlines() or ["no word"]
            raise EngineError(f"{engine} stopped with status {status}: {said[-1][:300]}")
        with np.load(out) as result:
            return EngineOutputs(
                str(result["engine"]), result["probabilities"], result["ms"], result.get("known")
            )


def main(argv: list[str]) -> int:
    engine, model, photos, n, threads, out = argv
    run = ENGINES[engine](Path(model).read_bytes(), int(threads))
    found: dict[str, list[NDArray[np.float32]]] = {}
    ms = []
    for photo in np.load(photos, mmap_mode="r")[: int(n)]:
        image = np.ascontiguousarray(photo[np.newaxis])
        started = time.perf_counter()
        outputs = run(image)
        ms.append(1000 * (time.perf_counter() - started))
        for name, output in outputs.items():
            found.setdefault(name, []).append(np.array(output[0]))
        print(".", end="", flush=True)
    stacked = {name: np.stack(parts) for name, parts in found.items()}
    np.savez(out, engine=run.engine, ms=np.array(ms, np.float32), **stacked)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # the whole group was interrupted, and the parent says so
        sys.exit(130)
