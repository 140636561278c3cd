"""How long a network of given widths takes in an engine on this machine, before there is one: its weights
are drawn, and quantized the quickest way, for neither changes how long they take.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from export.formats import INT8_CONVERTERS
from export.int8.quantize import Recipe, quantize
from export.parity.engine_worker import run_in_engine
from runtime.inference.engines import FORMATS_OF, default_threads
from train.network.heads import HEADS, build_classifier
from train.network.vgg import random_weights
from train.settings import Settings

WARM = 10  # inferences before any counts
TIMED = 50


def latency(widths: Mapping[str, int], size: int, classes: int, engine: str) -> float:
    """Median milliseconds of one picture of size x size through the int8 file, on all cores.

    Raises EngineError.
    """
    weights = random_weights(widths, (size, size))
    head = HEADS["pooled"](classes, Settings())
    channels = weights.output_shape("block5_pool")[2]
    keras.Sequential([keras.Input((1, 1, channels)), *head])  # creates the head's weights
    model = build_classifier(weights, head)
    pictures = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    data = INT8_CONVERTERS[FORMATS_OF[engine]](model, quantize(model, pictures, Recipe("nearest")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pictures.npy"
        np.save(path, np.repeat(pictures, (WARM + TIMED) // 2, axis=0))
        ms = run_in_engine(data, engine, path, WARM + TIMED, default_threads()).ms
    return float(np.median(ms[WARM:]))
