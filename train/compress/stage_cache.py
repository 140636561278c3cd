"""Results of finished stages, so that a killed command resumes instead of starting again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from runtime.common.atomic import atomic_write
from train.compress.allocation import NetworkShape
from train.compress.config import CompressSettings
from train.compress.latency_table import LatencyTable
from train.run import PACKED_WEIGHTS, Run, RunError
from train.run_writer import checkpoint_dir

FILES_VERSION = 5  # increase it if files of an older version of this project cannot continue a command
INPUTS_FILE = "inputs.json"
SHAPE_FILE = "shape.json"
TENSORS_FILE = "reconstructed.safetensors"


class StageCache:
    """A hidden folder beside the output run. It also holds the teacher's outputs and training checkpoints.

    With `resume` it continues from the results in the folder; else it starts empty. The folder is created
    with the shape, the first result: a command whose target cannot be met leaves no folder. Raises RunError
    when the folder has results of other inputs, unless `overwrite` allows to start again.
    """

    def __init__(self, out: Path, inputs: Mapping[str, Any], resume: bool, overwrite: bool = False) -> None:
        self.folder, self.inputs = checkpoint_dir(out), json.dumps(inputs)
        self.fingerprint = hashlib.sha256(self.inputs.encode()).hexdigest()
        if not resume:
            self.remove()
        elif self.folder.is_dir() and (changed := _changes(self.folder / INPUTS_FILE, self.inputs)):
            if not overwrite:
                raise RunError(
                    f"--resume: {changed}; give the same command again, or --overwrite to start again"
                )
            print(f"the compression starts again, because {changed}")
            self.remove()

    def shape(self, choose: Callable[[], NetworkShape]) -> NetworkShape:
        """The stored shape, or the result of `choose`, which is then stored."""
        file = self.folder / SHAPE_FILE
        if file.exists():
            return NetworkShape(**json.loads(file.read_text()))
        shape = choose()
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, text in ((self.folder / INPUTS_FILE, self.inputs), (file, json.dumps(asdict(shape)))):
            with atomic_write(path) as stream:
                stream.write(text.encode())
        return shape

    def tensors(
        self, solve: Callable[[], Mapping[str, NDArray[np.float32]]]
    ) -> dict[str, NDArray[np.float32]]:
        """The stored tensors, or the result of `solve`, which is then stored."""
        file = self.folder / TENSORS_FILE
        if file.exists():
            return dict(load(file.read_bytes()))
        tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in solve().items()}
        with atomic_write(file) as stream:
            stream.write(save(tensors))
        return tensors

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def cache_inputs(run: Run, settings: CompressSettings, table: LatencyTable | None = None) -> dict[str, Any]:
    """Everything that the compressed network depends on, by the words of an error."""
    packed = run.path / PACKED_WEIGHTS
    model = (packed if packed.exists() else run.path / "model.keras").read_bytes()
    return {
        **{f"--{name.replace('_', '-')}": value for name, value in asdict(settings).items()},
        "the latency table": table and asdict(table),
        "the run's photos": [run.data_sha256, run.picture_version],
        "the run's network": hashlib.sha256(model).hexdigest(),
        "the version of this project": FILES_VERSION,
    }


def _changes(file: Path, inputs: str) -> str:
    """The differences between the stored inputs and these, as a text; empty without a difference."""
    try:
        stored, given = json.loads(file.read_text()), json.loads(inputs)
    except (OSError, ValueError):
        stored = None
    if not isinstance(stored, dict):
        return "the stored stages are damaged, or another version of this project made them"
    changes = []
    for name in given:
        if stored.get(name) != given[name]:
            of = f" from {stored.get(name)} to {given[name]}" if name.startswith("--") else ""
            changes.append(f"{name} changed{of}")
    return ", ".join(changes)
