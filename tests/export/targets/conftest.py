"""The files of the small backbone, from which each target is built."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.parity.result import FileKey
from export.parity.runner import ParityReference, run_parity
from export.targets.registry import TARGETS
from export.targets.rk3588 import DEFAULT_PYTHON
from export.targets.stage import ExportedModel
from export.targets.target import CompiledTarget, TargetInput
from runtime.common.errors import UserError

PHOTOS = 12
# On the machine of the continuous integration, `make setup` installs these: a missing package fails there.
IN_CI = ("openvino", "ethos-u55", "tflm")


def require(target: str) -> None:
    """Skips the test where the compiler of the target is missing."""
    try:
        TARGETS[target].check(rknn_python())
    except UserError as error:
        if os.environ.get("CI") == "true" and target in IN_CI:
            raise
        pytest.skip(str(error))


def rknn_python() -> Path:
    """The Python of an environment with rknn-toolkit2, if there is one."""
    return Path(os.environ.get("VGG_EDGE_RKNN_PYTHON", DEFAULT_PYTHON))


@pytest.fixture(scope="session")
def exported(synthetic_run: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """What `python -m export --int8 --full-int8` makes of the small run, compared in LiteRT."""
    from export.__main__ import main
    from export.photos import read_photos
    from export.serving_model import predict, serving_model
    from runtime.model_file.index import read_index
    from train.run import open_run

    out = tmp_path_factory.mktemp("models") / "small"
    options = ["--int8", "--full-int8", "--photos", "2", "--engines", "litert", "onnx", "--out", str(out)]
    assert main([str(synthetic_run), *options]) == 0
    run, index = open_run(synthetic_run), read_index(out)
    files = {FileKey(file.format, file.precision): (out / file.file).read_bytes() for file in index.files}
    size = index.contract.input_size
    photos = read_photos(run.dataset, "train", size, PHOTOS)
    outputs = predict(serving_model(run), photos.pixels, lambda done: None)
    threshold = run.thresholds["known"]
    reference = ParityReference(
        photos.pixels,
        photos.truth,
        outputs["probabilities"],
        outputs["known"],
        threshold,
        outputs["features"],
    )

    def read(split: str, count: int) -> NDArray[np.uint8]:
        return read_photos(run.dataset, split, size, count).pixels

    results = run_parity(files, reference, ["litert"])
    return ExportedModel(index.contract, files, reference, results, read, rknn_python())


Build = Callable[..., CompiledTarget]


@pytest.fixture
def build(exported: ExportedModel) -> Build:
    """Builds a target by name, from other bytes if `data` is given."""

    def built(name: str, data: bytes | None = None) -> CompiledTarget:
        target = TARGETS[name]
        results = exported.results
        if data is not None and target.file.format == "tflite":
            results = run_parity({target.file: data}, exported.reference, ["litert"])
        source = TargetInput(
            name=name,
            file=target.file,
            data=data or exported.files[target.file],
            contract=exported.contract,
            reference=exported.reference,
            results=results,
            photos=exported.photos,
            python=exported.python,
        )
        return target.build(source, lambda: None)

    return built
