"""Run a compiled file in the engine of its target, in a separate process without TensorFlow.

    python -m export.targets.worker ENGINE MODEL PHOTOS.npy OUT.npz

prints one dot to stdout per photo.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity.engine_worker import EngineOutputs, Outputs, run_photos, run_worker
from export.tempdir import temporary_dir


@dataclass(frozen=True)
class Loaded:
    """A loaded file: uint8 [1, H, W, 3] → its outputs [1, …]. `facts` are numbers about it, by name."""

    engine: str
    run: Callable[[NDArray[np.uint8]], Outputs]
    facts: dict[str, float] = field(default_factory=dict)


def run_compiled(
    engine: str, files: dict[str, bytes], photos: NDArray[np.uint8], step: Callable[[], None]
) -> tuple[EngineOutputs, dict[str, float]]:
    """The outputs of a compiled model for photos uint8 [n, H, W, 3], and the facts of `Loaded`.

    The first of `files`, by name, is the model. Raises EngineError when the engine cannot run it.
    """
    with temporary_dir() as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        pixels, out = folder / "photos.npy", folder / "outputs.npz"
        np.save(pixels, photos)
        model = folder / next(iter(files))
        command = [sys.executable, "-m", "export.targets.worker", engine, str(model), str(pixels), str(out)]
        outputs = run_worker(engine, command, out, step)
        with np.load(out) as result:
            facts = {
                name.removeprefix("fact_"): float(result[name])
                for name in result.files
                if name.startswith("fact_")
            }
    return outputs, facts


def main(argv: list[str]) -> int:
    """Runs in the separate process. Returns 0."""
    engine, model, photos, out = argv
    dots = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # an engine's own messages
    loaded = LOADERS[engine](Path(model))
    results = run_photos(loaded.run, np.load(photos, mmap_mode="r"), dots)
    facts = {f"fact_{name}": np.float64(value) for name, value in loaded.facts.items()}
    np.savez(out, engine=loaded.engine, **results, **facts)
    return 0


def _load_openvino(path: Path) -> Loaded:
    import openvino

    from runtime.inference.engines import OPENVINO_SETTINGS

    start = time.perf_counter()
    compiled = openvino.Core().compile_model(path, "CPU", OPENVINO_SETTINGS)
    compile_ms = 1000 * (time.perf_counter() - start)
    names = [port.get_any_name() for port in compiled.outputs]
    request = compiled.create_infer_request()

    def run(image: NDArray[np.uint8]) -> Outputs:
        return dict(zip(names, request.infer([image]).values(), strict=True))

    return Loaded(f"openvino {openvino.__version__.split('-')[0]}", run, {"compile_ms": compile_ms})


def _load_tflm(path: Path) -> Loaded:
    from importlib.metadata import version

    from tflite_micro.python.tflite_micro import runtime

    from export.flatbuffer import unpack

    data = path.read_bytes()
    arena = _smallest_arena(lambda size: runtime.Interpreter.from_bytes(data, arena_size=size))
    interpreter = runtime.Interpreter.from_bytes(data, arena_size=arena)
    (graph,) = unpack(data).subgraphs
    names = [graph.tensors[index].name.decode() for index in graph.outputs]
    (image,) = [interpreter.get_input_details(0)]
    details = [interpreter.get_output_details(number) for number in range(len(names))]

    def run(pixels: NDArray[np.uint8]) -> Outputs:
        interpreter.set_input(pixels.astype(image["dtype"], copy=False), 0)
        interpreter.invoke()
        return {
            name: _real(interpreter.get_output(number), details[number]) for number, name in enumerate(names)
        }

    return Loaded(f"tflite-micro {version('tflite-micro')}", run, {"arena": arena})


def _smallest_arena(load: Callable[[int], object]) -> int:
    """The smallest arena in bytes, a multiple of 1024, with which `load` succeeds. Raises RuntimeError where
    even 1 GiB is too small.
    """
    low, high = 0, 2**16
    while not _succeeds(load, high):
        low, high = high, 2 * high
        if high > 2**30:
            load(high)
    while high - low > 1024:
        middle = (low + high) // 2048 * 1024
        low, high = (low, middle) if _succeeds(load, middle) else (middle, high)
    return high


def _succeeds(load: Callable[[int], object], size: int) -> bool:
    try:
        load(size)
    except RuntimeError:
        return False
    return True


def _real(values: NDArray[Any], details: dict[str, Any]) -> NDArray[np.float32]:
    """The real numbers that a tensor's codes stand for."""
    quantization = details["quantization_parameters"]
    if not np.issubdtype(values.dtype, np.integer):
        return values
    codes = values.astype(np.float32) - quantization["zero_points"][0]
    return np.asarray(codes * quantization["scales"][0], np.float32)


LOADERS: dict[str, Callable[[Path], Loaded]] = {"openvino": _load_openvino, "tflm": _load_tflm}


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # Ctrl-C reaches the whole process group; the parent reports it
        sys.exit(130)
