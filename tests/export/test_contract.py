"""A contract that a device would refuse is refused before the work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from export.contract import (
    ModelFacts,
    build_contract,
    check_contract,
    check_recorded_top1,
    next_release,
    run_statistics,
)
from export.model_folder import ExportedFile, model_folder
from export.parity.result import FileKey
from runtime.common.errors import UserError
from runtime.model_file.contract import Contract, GoldenAnswer
from runtime.model_file.files import INDEX_NAME, MAX_JSON_BYTES
from runtime.model_file.index import Index
from tests.export.parity.results import RESULT
from train.run import Run, open_run

FILES = (
    FileKey("tflite", "float32"),
    FileKey("onnx", "float32"),
    FileKey("tflite", "int8"),
    FileKey("onnx", "int8"),
)


@pytest.mark.parametrize(
    ("changes", "out", "fact"),
    [
        ({}, "2025-01-31T12:00:00", r"m/2025-01-31T12:00:00: .*without / .*--out"),
        ({}, "a\x1b[2J", "name.*--out"),
        ({}, "a\udce9", "name.*--out"),
        ({}, "a" * 190, "name.*--out"),
        ({"labels": ("daisy", "d" * 201)}, "m", "run runs/r: .*label.*train again"),
        ({"labels": tuple(map(str, range(10_001)))}, "m", "labels.*10,000"),
        ({"labels": tuple(f"{n:0200}" for n in range(6_000))}, "m", "1,048,576 bytes"),
        ({"versions": {"keras": None}}, "m", "versions"),
    ],
)
def test_a_contract_that_a_device_would_refuse_is_refused(
    contract: Contract, changes: dict[str, Any], out: str, fact: str
) -> None:
    check_contract(contract, FILES, Path("runs/r"), Path("m"))
    with pytest.raises(UserError, match=fact):
        check_contract(replace(contract, name=out, **changes), FILES, Path("runs/r"), Path("m", out))


def test_each_export_to_a_folder_counts_its_release(tmp_path: Path, contract: Contract) -> None:
    out = tmp_path / "m"
    assert next_release(out) == 1
    out.mkdir()
    for release in (1, 41):
        golden = GoldenAnswer((0.2, 0.3, 0.5), None)
        new = replace(contract, version=2, features=8, release=release, golden=golden)
        (out / INDEX_NAME).write_text(Index(new, ()).to_json(), encoding="utf-8")
        assert next_release(out) == release + 1
    (out / INDEX_NAME).write_text(Index(contract, ()).to_json(), encoding="utf-8")
    assert contract.version == 1 and next_release(out) == 1
    old = out.rename(tmp_path / "m.old")  # what a crash in the moment of the replacement leaves
    (old / INDEX_NAME).write_text(Index(new, ()).to_json(), encoding="utf-8")
    assert next_release(out) == 42
    old.rename(out)
    (out / INDEX_NAME).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"release number.*--out"):
        next_release(out)


def recorded_run(synthetic_run: Path, folder: Path, confusion: object) -> Run:
    """A run whose metrics.json holds only this confusion matrix of the test photos."""
    (folder / "metrics.json").write_text(json.dumps({"test": {"confusion": confusion}}), encoding="utf-8")
    return replace(open_run(synthetic_run), path=folder, metrics={"test": None, "val": None})


def answers(correct: Sequence[int], photos: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Probabilities and classes of `photos` of each class, of which `correct` get the right label."""
    truth = np.repeat(np.arange(len(photos)), photos)
    right = np.concatenate([np.arange(n) < k for k, n in zip(correct, photos, strict=True)])
    predicted = np.where(right, truth, (truth + 1) % len(photos))
    return np.eye(len(photos), dtype=np.float32)[predicted], truth


@pytest.mark.parametrize("correct", [0, 2, 3, 7, 8])
def test_a_model_that_is_not_the_runs_own_is_refused(
    synthetic_run: Path, tmp_path: Path, correct: int
) -> None:
    run = recorded_run(synthetic_run, tmp_path, [[5, 5], [0, 0]])
    refused = pytest.raises(UserError, match=rf"labels {correct} of the 10 test .* would be 5: .*again")
    with nullcontext() if correct in (3, 7) else refused:
        check_recorded_top1(run, *answers([correct, 0], [10, 0]))


def test_without_metrics_json_run_json_shows_a_model_of_another_run(
    synthetic_run: Path, tmp_path: Path
) -> None:
    summary = {"test": {"n": 10, "top1": 0.5}, "val": None}
    run = replace(open_run(synthetic_run), path=tmp_path, metrics=summary)
    check_recorded_top1(run, *answers([5, 0], [10, 0]))
    check_recorded_top1(run, *answers([0, 0], [9, 0]))  # no record of the accuracy on some of the photos
    with pytest.raises(UserError, match=r"labels 8 of the 10 test photos correctly, .* would be 5: "):
        check_recorded_top1(run, *answers([8, 0], [10, 0]))


@pytest.mark.parametrize(
    ("correct", "accepted"), [([98, 25], True), ([99, 32], True), ([80, 25], False), ([1, 1], False)]
)
def test_some_of_the_photos_also_show_a_model_that_is_not_the_runs_own(
    synthetic_run: Path, tmp_path: Path, correct: list[int], accepted: bool
) -> None:
    """The photos come from the classes in turn, so a sample has another share of a rare, hard class."""
    run = recorded_run(synthetic_run, tmp_path, [[441, 9], [25, 25]])
    with nullcontext() if accepted else pytest.raises(UserError, match="a file of the run was replaced"):
        check_recorded_top1(run, *answers(correct, [100, 50]))


@pytest.mark.parametrize(
    "confusion",
    [None, [], [[1]], [["a", 0], [0, 0]], [[-1, 0], [0, 0]], [[3, 0], [0, 0]], [[0, 10], [0, 1e99]]],
)
def test_without_a_record_of_these_photos_nothing_is_refused(
    synthetic_run: Path, tmp_path: Path, confusion: object
) -> None:
    check_recorded_top1(recorded_run(synthetic_run, tmp_path, confusion), *answers([0, 0], [10, 10]))


def test_a_run_with_a_detector_but_without_statistics_is_trained_again(
    synthetic_run: Path, tmp_path: Path
) -> None:
    run = replace(open_run(synthetic_run), path=tmp_path)
    with pytest.raises(UserError, match=r"no statistics\.safetensors.*train it again"):
        run_statistics(run)
    assert run_statistics(replace(run, thresholds={})) == b""
    facts = ModelFacts(
        (64, 64),
        features=7,
        golden=GoldenAnswer((), None),
        statistics=run_statistics(open_run(synthetic_run)),
    )
    with pytest.raises(UserError, match="another model; train it again"):
        build_contract(run, "small", facts, release=1)


def test_an_index_that_its_figures_make_too_large_is_not_written(
    synthetic_run: Path, contract: Contract, float_files: dict[FileKey, bytes]
) -> None:
    room = MAX_JSON_BYTES - len(Index(contract, ()).to_json().encode())
    full = replace(contract, base_sha256=room * "a")
    key = FileKey("tflite", "float32")
    with pytest.raises(UserError, match=r"model\.json: .*1,048,576 bytes"):
        model_folder(
            full, open_run(synthetic_run), [ExportedFile("small", key, float_files[key])], [RESULT], ""
        )
