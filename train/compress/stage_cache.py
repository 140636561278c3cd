"""Results of finished stages, so that a killed command resumes instead of starting again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from runtime.common.atomic import atomic_write
from train.compress.allocation import NetworkShape
from train.compress.config import CompressSettings
from train.compress.latency_table import LatencyTable
from train.run import PACKED_WEIGHTS, Run
from train.run_writer import checkpoint_dir

FILES_VERSION = 4  # increase it if files of an older version of this project cannot continue a command
FINGERPRINT_FILE = "fingerprint"
SHAPE_FILE = "shape.json"
TENSORS_FILE = "reconstructed.safetensors"


class StageCache:
    """A hidden folder beside the output run. It also holds the teacher's outputs and training checkpoints.

    It starts empty unless `resume` is set and the folder has the same fingerprint. The folder is created with
    the shape, the first result: a command whose target cannot be met leaves none.
    """

    def __init__(self, out: Path, fingerprint: str, resume: bool) -> None:
        self.folder, self.fingerprint = checkpoint_dir(out), fingerprint
        file = self.folder / FINGERPRINT_FILE
        stored = file.read_text() if resume and file.exists() else None
        if stored != fingerprint:
            if stored:
                print("the compression starts again, because a setting, the run or its photos have changed")
            self.remove()

    def shape(self, choose: Callable[[], NetworkShape]) -> NetworkShape:
        """The stored shape, or the result of `choose`, which is then stored."""
        file = self.folder / SHAPE_FILE
        if file.exists():
            return NetworkShape(**json.loads(file.read_text()))
        shape = choose()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / FINGERPRINT_FILE).write_text(self.fingerprint)
        with atomic_write(file) as stream:
            stream.write(json.dumps(asdict(shape)).encode())
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


def compress_fingerprint(run: Run, settings: CompressSettings, table: LatencyTable | None = None) -> str:
    """A hash of everything that the compressed network depends on."""
    packed = run.path / PACKED_WEIGHTS
    model = (packed if packed.exists() else run.path / "model.keras").read_bytes()
    parts = [
        FILES_VERSION,
        asdict(settings),
        table and asdict(table),
        run.data_sha256,
        run.picture_version,
        hashlib.sha256(model).hexdigest(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
