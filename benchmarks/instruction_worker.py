"""Runs one model in one engine, with a mark after the first inference and after each of the others.

    python -m benchmarks.instruction_worker FILE ENGINE RUNS

benchmarks/instructions.py starts it in an emulator, whose plugin writes the number of executed instructions
at each mark. A mark is a call of getppid(), which neither Python nor the engines make.
"""

import os
import sys
from pathlib import Path

import numpy as np

from runtime.inference.engines import load_session
from runtime.model_file.loader import open_model


def run(path: Path, engine: str, runs: int) -> None:
    """Runs `runs` inferences on one thread; prints the engine with its version."""
    model = open_model(path)
    session = load_session(model, engine, threads=1)
    height, width = model.contract.input_size
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    session(image)  # engines prepare buffers in the first inference
    os.getppid()
    for _ in range(runs):
        session(image)
        os.getppid()
    print(session.engine)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
