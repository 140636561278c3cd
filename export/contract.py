"""Build the contract of a run's files, and check it with the reader that a device uses."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.output_dir import replaced_dir
from export.parity.result import FileKey
from export.tempdir import temporary_dir
from runtime.common.errors import ModelError, UserError
from runtime.model_file.contract import CONTRACT_VERSION, RESIZE, Contract, GoldenAnswer
from runtime.model_file.files import INDEX_NAME
from runtime.model_file.index import Index, IndexedFile, read_index
from runtime.model_file.statistics import ModelStatistics
from train.run import STATISTICS, Run

# How far the accuracy may be from the recorded accuracy: other processors and data types round otherwise.
MAX_TOP1_PHOTOS, MAX_TOP1_CHANGE = 2, 0.02
SAMPLE_DEVIATIONS = 5  # standard deviations, allowed in addition if a sample of the photos is compared


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a trained model that its contract states."""

    size: tuple[int, int]  # H, W
    features: int  # D
    golden: GoldenAnswer
    statistics: bytes  # of a ModelStatistics; empty without a detector of unknown pictures


def build_contract(run: Run, name: str, facts: ModelFacts, release: int) -> Contract:
    """The contract of a model folder called `name`. Raises UserError when the run's statistics do not fit."""
    versions = dict(run.versions)
    for package in ("tensorflow", "tf2onnx", "onnx", "litert-quantizer"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    contract = Contract(
        version=CONTRACT_VERSION,
        name=name,
        labels=run.classes,
        input_size=facts.size,
        resize=RESIZE,
        thresholds=run.thresholds,
        base_sha256=run.base_sha256,
        data_sha256=run.data_sha256,
        versions=versions,
        created=f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        synthetic=run.synthetic,
        features=facts.features,
        release=release,
        golden=facts.golden,
        statistics_sha256=hashlib.sha256(facts.statistics).hexdigest() if facts.statistics else "",
    )
    if facts.statistics:
        try:
            ModelStatistics.from_bytes(facts.statistics).check(contract)
        except ModelError:
            raise UserError(f"run {run.path}: {STATISTICS} is of another model; train it again") from None
    return contract


def run_statistics(run: Run) -> bytes:
    """The run's statistics as a model file holds them; empty without a detector of unknown pictures.

    Raises UserError when a run with a detector has none.
    """
    statistics = run.statistics()
    if statistics is None and "known" in run.thresholds:
        raise UserError(f"run {run.path}: has no {STATISTICS}; train it again")
    return statistics.to_bytes() if statistics else b""


def next_release(out: Path) -> int:
    """The release after that of the model folder which an export to `out` replaces; 1 without one.

    A crash in the moment of the replacement leaves the folder as NAME.old. Raises UserError when the folder's
    release cannot be read.
    """
    current = out if out.exists() else replaced_dir(out)
    if not (current / INDEX_NAME).exists():
        return 1
    try:
        return read_index(current).contract.release + 1
    except ModelError as error:
        raise UserError(
            f"{error}; its release number cannot be counted on: remove the folder, or give another --out"
        ) from None


def check_recorded_top1(run: Run, probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> None:
    """Raises UserError when the trained model [n, C] labels the test photos otherwise than the run records.

    Parity cannot show that a model or the order of the classes is of another run: it compares the files with
    this model. run.json records the accuracy on all test photos, and metrics.json also that of each class: on
    some of the photos, chance allows more.
    """
    n, recorded = len(truth), run.metrics.get("test") or {}
    correct = int((probabilities.argmax(axis=1) == truth).sum())
    if recorded.get("n") == n and "top1" in recorded:
        expected, deviation = recorded["top1"] * n, 0.0
    else:
        expected, deviation = _expected_correct(_recorded_confusion(run, probabilities.shape[1]), truth)
    allowed = max(MAX_TOP1_PHOTOS, MAX_TOP1_CHANGE * n) + SAMPLE_DEVIATIONS * deviation
    if abs(correct - expected) > allowed:
        raise UserError(
            f"run {run.path}: its model labels {correct} of the {n:,} test photos correctly, but by the "
            f"recorded accuracy it would be {expected:.0f}: a file of the run was replaced; restore it, or "
            "train again"
        )


def _expected_correct(confusion: NDArray[np.int64], truth: NDArray[np.int64]) -> tuple[float, float]:
    """How many photos with these classes [n] get the right label, and the standard deviation; infinite if
    `confusion` [C, C] counts fewer photos of a class.
    """
    photos, recorded = np.bincount(truth, minlength=len(confusion)), confusion.sum(axis=1)
    if (photos > recorded).any():
        return 0.0, math.inf
    recall = confusion.diagonal() / np.maximum(recorded, 1)
    # Of each class, a sample without replacement: the hypergeometric distribution.
    variances = photos * recall * (1 - recall) * (recorded - photos) / np.maximum(recorded - 1, 1)
    return float(photos @ recall), math.sqrt(variances.sum())


def _recorded_confusion(run: Run, classes: int) -> NDArray[np.int64]:
    """The test photos [C, C] by class and predicted class; zeros if metrics.json does not count them."""
    try:
        record = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
        confusion = np.array(record["test"]["confusion"], np.int64)
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        confusion = np.zeros(0, np.int64)
    fits = confusion.shape == (classes, classes) and (confusion >= 0).all()
    return confusion if fits else np.zeros((classes, classes), np.int64)


def check_contract(contract: Contract, files: Sequence[FileKey], run: Path, out: Path) -> None:
    """Raises UserError when a device would refuse this contract or the names of its files.

    An export calls it before the work of minutes.
    """
    check_index(Index(replace(contract, name="model"), ()), run)  # the contract under a valid name
    names = (
        IndexedFile(file_name(contract.name, file), *file, bytes=0, sha256="0" * 64, metrics={})
        for file in files
    )
    if reason := _refusal(Index(contract, tuple(names))):
        raise UserError(f"{out}: the folder's name is part of its file names: {reason}; give another --out")


def check_index(index: Index, run: Path) -> None:
    """Raises UserError when a device would refuse this model.json."""
    if reason := _refusal(index):
        raise UserError(
            f"run {run}: a device would refuse its {INDEX_NAME}: {reason}; "
            "rename its classes, or use fewer classes with shorter names, and train again"
        )


def file_name(name: str, file: FileKey) -> str:
    """The name of a file in the folder `name`, such as flowers_int8.tflite."""
    return f"{name}_{file.precision}.{file.format}"


def _refusal(index: Index) -> str:
    """Why the device's reader refuses this index; empty if it does not."""
    with temporary_dir() as folder:
        path = folder / INDEX_NAME
        path.write_bytes(index.to_json().encode("utf-8", "surrogatepass"))  # the reader refuses surrogates
        try:
            read_index(folder)
        except ModelError as error:
            return str(error).removeprefix(f"{path}: ")
    return ""
