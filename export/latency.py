"""Measure the latency of int8 networks by their shape, before such a network is trained.

    python -m export.latency

The worker reads a JSON object from each line of stdin and writes an object to a line of stdout:

    {"size": 192, "widths": {"block1_conv1": 16, …}, "classes": 5, "engine": "litert"}   request
    {"ms": 9.4} or {"error": "…"}                                                        answer

Weights are random and quantized by the fastest method, because neither changes the latency.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from export.formats import INT8_CONVERTERS
from export.int8.quantize import Recipe, quantize
from export.parity.engine_worker import run_in_engine
from export.tempdir import temporary_dir
from runtime.common.cli import ArgumentParser
from runtime.common.errors import UserError
from runtime.inference.engines import ENGINES, default_threads
from train.network.heads import HEADS, build_classifier
from train.network.vgg import random_weights
from train.settings import Settings

WARMUP = 10  # inferences that are not counted
TIMED = 50


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the requests on stdin until it ends. Returns exit code 0."""
    ArgumentParser(
        prog="python -m export.latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(argv)
    # Converters print to stdout, so answers go to a copy of it and everything else to stderr.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        try:
            answer: dict[str, float | str] = {"ms": measure_latency(**json.loads(line))}
        except UserError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


def measure_latency(size: int, widths: Mapping[str, int], classes: int, engine: str) -> float:
    """The median milliseconds of one picture of size x size through the int8 file, on all cores.

    Raises EngineError when the engine cannot run it.
    """
    weights = random_weights(widths, (size, size))
    head = HEADS["pooled"](classes, Settings())
    keras.Sequential([keras.Input((1, 1, widths["block5_conv3"])), *head])  # creates the head's weights
    model = build_classifier(weights, head)
    pictures = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    data = INT8_CONVERTERS[ENGINES[engine].format](model, quantize(model, pictures, Recipe("nearest")))
    with temporary_dir() as folder:
        path = Path(folder) / "pictures.npy"
        np.save(path, np.repeat(pictures, (WARMUP + TIMED) // 2, axis=0))
        ms = run_in_engine(data, engine, path, WARMUP + TIMED, default_threads()).ms
    return float(np.median(ms[WARMUP:]))


if __name__ == "__main__":
    sys.exit(main())
