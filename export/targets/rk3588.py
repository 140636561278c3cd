"""The target `rk3588`: the neural processor (NPU) of Rockchip's RK3588, compiled with rknn-toolkit2.

The toolkit needs old versions of packages that this project also uses. It therefore runs in an environment of
its own, whose Python the flag `--target-python` names. The parity is measured in the toolkit's simulator.

The convolutions become int8, and the head stays in float16. If that file fails its gate on validation photos,
the whole network becomes float16.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.parity.engine_worker import EngineOutputs, run_in_engine, run_worker
from export.parity.gates import FLOAT16_ARITHMETIC, broken_bounds
from export.parity.result import FileKey
from export.parity.runner import ParityReference, compare_outputs, select_rows
from export.targets.target import CompiledTarget, Step, TargetInput, megabytes
from export.tempdir import temporary_dir
from runtime.common.errors import UserError
from runtime.inference.engines import default_threads

CALIBRATION_PHOTOS = 60  # of train
VALIDATION_PHOTOS = 50  # of val
DEFAULT_PYTHON = Path(".venv-rknn/bin/python")
INSTALL = "python3.11 -m venv .venv-rknn && .venv-rknn/bin/pip install rknn-toolkit2 'setuptools<81'"
_WORKER = Path(__file__).with_name("rknn_worker.py")
_IS_INSTALLED = "import importlib.util, sys; sys.exit(importlib.util.find_spec('rknn') is None)"


def check_rknn(python: Path) -> None:
    """Raises UserError when the environment of `python` lacks rknn-toolkit2."""
    try:
        found = subprocess.run([python, "-I", "-c", _IS_INSTALLED], capture_output=True).returncode == 0
    except OSError:
        found = False
    if not found:
        raise UserError(
            f"{python}: rknn-toolkit2 is not installed; it needs an environment of its own with Python 3.8 "
            f"to 3.12: {INSTALL}; for an environment elsewhere, add --target-python PATH"
        )


def build_rk3588(source: TargetInput, step: Step) -> CompiledTarget:
    """The .rknn of a float32 ONNX file: int8 if that passes the gate on validation photos, else float16.

    Raises EngineError when the toolkit fails.
    """
    with temporary_dir() as folder:
        job = _Job(folder, source)
        outputs = _int8_outputs(job, step)
        is_int8 = outputs is not None
        if outputs is None:
            outputs = job.run(source.reference.photos, False, lambda: None)
        compiled = (folder / "model.rknn").read_bytes()
    precision = "int8" if is_int8 else FLOAT16_ARITHMETIC
    text = "int8, with the head in float16" if is_int8 else "float16, because int8 fails its gate"
    return CompiledTarget(
        target=source.name,
        compiler=outputs.engine,
        files={source.file_name(".rknn"): compiled},
        report={
            "precision": f"{text} (chosen on {VALIDATION_PHOTOS} validation photos)",
            "size": megabytes(len(compiled)),
            "latency": "not known: the simulator does not estimate it",
        },
        parity=compare_outputs(
            FileKey("onnx", precision), compiled, outputs.engine, [outputs], source.reference
        ),
        compared_in=f"the simulator of {outputs.engine}",
    )


class _Job:
    """The model and its calibration photos in a folder, as the toolkit reads them."""

    def __init__(self, folder: Path, source: TargetInput) -> None:
        from export.targets.npu_network import npu_network  # loads onnx

        self.folder, self.source = folder, source
        self.network = npu_network(source.data)
        (folder / "model.onnx").write_bytes(self.network.data)
        photos = source.photos("train", CALIBRATION_PHOTOS)  # a small run has fewer
        names = [f"{number}.png" for number in range(len(photos))]
        for name, photo in zip(names, photos, strict=True):
            Image.fromarray(photo).save(folder / name)
        (folder / "calibration.txt").write_text("\n".join(names), encoding="utf-8")

    def run(self, photos: NDArray[np.uint8], is_int8: bool, step: Step) -> EngineOutputs:
        """Builds model.rknn and simulates it on photos uint8 [n, H, W, 3]. Raises EngineError."""
        pixels, out = self.folder / "photos.npy", self.folder / "outputs.npz"
        np.save(pixels, photos)
        request = {
            "platform": self.source.name,
            "mean": self.network.mean,
            "calibration": "calibration.txt" if is_int8 else None,
            "float16": self.network.head,
            "photos": pixels.name,
            "outputs": out.name,
            "names": self.network.outputs,
        }
        (self.folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        command = [str(self.source.python.absolute()), "-I", str(_WORKER), str(self.folder / "request.json")]
        return run_worker("rknn-toolkit2", command, out, step)


def _int8_outputs(job: _Job, step: Step) -> EngineOutputs | None:
    """The outputs of the int8 model on the test photos; None if it fails its gate on validation photos.

    Validation compares it with the float32 file in ONNX Runtime. One build answers both sets of photos.
    """
    source = job.source
    validation = source.photos("val", VALIDATION_PHOTOS)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done > len(validation):
            step()

    outputs = job.run(np.concatenate([validation, source.reference.photos]), True, count)
    reference = _float32_reference(job, validation)
    first = select_rows(outputs, slice(len(validation)))
    rest = select_rows(outputs, slice(len(validation), None))
    result = compare_outputs(FileKey("onnx", "int8"), source.data, outputs.engine, [first], reference)
    return None if broken_bounds(result) else rest


def _float32_reference(job: _Job, photos: NDArray[np.uint8]) -> ParityReference:
    """The answers of the float32 file in ONNX Runtime for these photos."""
    pixels = job.folder / "validation.npy"
    np.save(pixels, photos)
    float32 = run_in_engine(job.source.data, "onnx", pixels, len(photos), default_threads())
    return ParityReference(
        photos,
        float32.probabilities.argmax(axis=1),
        float32.probabilities,
        float32.known,
        job.source.reference.known_threshold,
        float32.features,
    )
