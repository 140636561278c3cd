"""Every gate holds and fails where it should, and nothing that an engine does crashes the table."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export import onnx as to_onnx
from export.parity import engine_worker as device
from export.parity import parity
from export.parity.engine_worker import EngineOutputs
from export.parity.parity import (
    NoveltyReference,
    ParityResult,
    broken_bounds,
    failures,
    inference_count,
    run_parity,
    table,
    to_csv,
    upper_bound,
)
from export.serving_model import predict
from runtime.common.errors import EngineError, UserError
from tests.export.conftest import small_model

ROW = ParityResult(
    format="tflite",
    precision="int8",
    engine="litert 2.3.0",
    n=500,
    bytes=1_000_000,
    top1=0.9,
    reference_top1=0.9,
    disagreements=0,
    mean_dp=0.0,
    p99_dp=0.0,
    max_dp=0.0,
    ms=1.0,
)


@pytest.mark.parametrize(
    ("precision", "holds", "fails", "says"),
    [
        ("float32", {"max_dp": 1e-4}, {"max_dp": 1.1e-4}, r"max \|Δp\|"),
        ("float16", {"max_dp": 5e-3}, {"max_dp": 5.1e-3}, r"max \|Δp\|"),
        ("dynamic", {"disagreements": 10}, {"disagreements": 11}, "agreement 97.8%"),
        ("int8", {"disagreements": 10}, {"disagreements": 11}, "agreement 97.8%"),
        ("int8", {"p99_dp": 0.12}, {"p99_dp": 0.121}, "99th percentile"),
        ("int8", {"max_dp": 0.25}, {"max_dp": 0.251}, r"max \|Δp\|"),
        ("int8", {"top1": 0.89}, {"top1": 0.888}, "top-1 falls by 1.2 points"),
        # Fewer photos: ⌈2 % of n⌉ may disagree, and a rate or a percentile of so few is no figure.
        (
            "int8",
            {"n": 40, "disagreements": 1, "p99_dp": 0.2, "top1": 0.875},
            {"n": 40, "disagreements": 2},
            "1 may",
        ),
        ("dynamic", {"n": 249, "disagreements": 5}, {"n": 249, "disagreements": 6}, "5 may"),
        ("int8", {"n": 1, "disagreements": 1}, {"n": 1, "max_dp": 0.26}, r"max \|Δp\|"),
        ("float32", {"n": 3}, {"n": 3, "max_dp": 0.01}, r"max \|Δp\|"),
        ("float32", {}, {"max_dp": math.nan}, r"max \|Δp\|"),
        ("dynamic", {}, {"error": "gives no finite number"}, "no finite number"),
    ],
)
def test_each_gate(precision: str, holds: dict[str, float], fails: dict[str, float], says: str) -> None:
    row = replace(ROW, precision=precision)
    assert broken_bounds(replace(row, **holds)) == []
    (line,) = failures([replace(row, **holds), replace(row, **fails)])
    assert line.startswith(f"tflite {precision} in litert 2.3.0: ")
    assert line.endswith(
        "report it with the versions of both" if "error" in fails else parity.GATES[precision].next_step
    )
    assert re.search(says, line)


def test_the_gate_on_known() -> None:
    few = replace(ROW, n=500, known_disagreements=10, max_dknown=0.4)
    assert broken_bounds(few) == []
    assert broken_bounds(replace(few, known_disagreements=11)) == [
        "11 of 500 photos are known to one alone, 10 may be"
    ]
    exact = replace(ROW, precision="float32", known_disagreements=0, max_dknown=1e-4)
    assert broken_bounds(exact) == []
    assert broken_bounds(replace(exact, max_dknown=2e-4)) == ["max |Δ known| 0.0002 is over 0.0001"]
    assert "98.0%" in table([few]) and "known" in table([few]) and "known" not in table([ROW])


def test_known_is_measured_in_the_engine(pictures: NDArray[np.uint8]) -> None:
    model = small_model(known=True)
    said = predict(model, pictures, lambda done: None)
    threshold = float(np.median(said["known"]))
    files = {("onnx", "float32"): to_onnx.float32(model), ("onnx", "float16"): to_onnx.float32(small_model())}
    truth = said["probabilities"].argmax(axis=1)
    right = NoveltyReference(said["known"], threshold)
    told, silent = run_parity(files, said["probabilities"], pictures, truth, ["onnx"], known=right)
    assert told.known_disagreements == 0 and told.max_dknown is not None and told.max_dknown < 1e-5
    assert silent.error == "gives no `known` that is a finite number a photo"
    wrong = NoveltyReference(1 - said["known"], threshold)
    (row,) = run_parity(
        {("onnx", "float32"): files["onnx", "float32"]},
        said["probabilities"],
        pictures,
        truth,
        ["onnx"],
        known=wrong,
    )
    assert failures([row])


def test_agreement_with_the_uncompressed_model(pictures: NDArray[np.uint8]) -> None:
    model = small_model()
    files = {("onnx", "float32"): to_onnx.float32(model)}
    said = predict(model, pictures, lambda done: None)["probabilities"]
    top = said.argmax(axis=1)
    other = top.copy()
    other[:2] = (other[:2] + 1) % said.shape[1]
    (row,) = run_parity(files, said, pictures, top, ["onnx"], uncompressed=other)
    assert row.disagreements == 0 and row.uncompressed_disagreements == 2
    assert f"{1 - 2 / len(pictures):.1%}" in table([row]) and "uncompressed" in table([row])
    (told,) = csv.DictReader(io.StringIO(to_csv([row])))
    assert float(told["uncompressed_agreement"]) == pytest.approx(1 - 2 / len(pictures))
    assert "uncompressed" not in table([ROW])


def test_upper_bound() -> None:
    """Against the closed form for none seen, and the published bound for one in ten (Clopper and Pearson)."""
    assert upper_bound(40, 0) == pytest.approx(1 - 0.05 ** (1 / 40))
    assert upper_bound(10, 1) == pytest.approx(0.3942, abs=1e-4)
    assert upper_bound(1000, 3) < upper_bound(100, 3)


def test_table_says_how_little_few_photos_prove() -> None:
    few = table([replace(ROW, n=40)])
    assert "n = 40" in few
    assert "up to 7.2%" in few
    assert "250" in few
    assert "holds" in few
    assert "FAILS" in table([replace(ROW, max_dp=0.5)])
    assert "apply from" in few and "apply from" not in table([ROW])


def test_csv() -> None:
    (row,) = csv.DictReader(io.StringIO(to_csv([replace(ROW, disagreements=25)])))
    assert (row["format"], row["n"], float(row["agreement"])) == ("tflite", "500", 0.95)
    assert row["verdict"] == "agreement 95.0% is under 98.0%"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda p: p * np.float32(0.5), "sum to 0.500"),
        (lambda p: np.where(p == p.max(), np.nan, p).astype(np.float32), "no finite number for 1 photos"),
        (lambda p: p[:, :2], r"gives \[2\] probabilities a photo, not \[3\]"),
        (lambda p: p.astype(np.float64), "float64"),
        (lambda p: p + np.array([-0.9, 0.9, 0], np.float32), "sum to"),
    ],
)
def test_answers_that_break_the_contract_fail(
    answer: object, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], np.float32)
    said = answer(reference)  # type: ignore[operator]
    monkeypatch.setattr(
        parity, "run_in_engine", lambda *_: EngineOutputs("engine 1", said, np.ones(2, np.float32))
    )
    pictures = np.zeros((2, 8, 8, 3), np.uint8)
    (row,) = run_parity({("onnx", "int8"): b""}, reference, pictures, np.array([0, 1]), ["onnx"])
    assert re.search(says, row.error)
    assert failures([row])
    assert "FAILS" in table([row])


def test_an_engine_that_cannot_run_a_file_fails_and_the_others_go_on(
    float_files: dict[tuple[str, str], bytes], reference: NDArray[np.float32], pictures: NDArray[np.uint8]
) -> None:
    good = float_files["tflite", "float32"]
    files = {("tflite", "float32"): good, ("tflite", "dynamic"): good[: len(good) // 2]}
    counted: list[int] = []
    rows = run_parity(files, reference, pictures, reference.argmax(axis=1), ["litert"], counted.append)
    assert [bool(row.error) for row in rows] == [False, True]
    assert "stopped with status" in rows[1].error
    assert len(failures(rows)) == 1
    assert sum(counted) == inference_count([("tflite", "float32")], len(pictures), ["litert"])


def test_an_interrupt_stops_the_engines(
    float_files: dict[tuple[str, str], bytes], reference: NDArray[np.float32], pictures: NDArray[np.uint8]
) -> None:
    files = {("onnx", "float32"): float_files["onnx", "float32"]}

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_parity(files, reference, pictures, reference.argmax(axis=1), ["onnx"], interrupt)


def test_an_engines_own_words_are_told(tmp_path: object, pictures: NDArray[np.uint8]) -> None:
    path = tmp_path / "photos.npy"  # type: ignore[operator]
    np.save(path, pictures)
    with pytest.raises(EngineError, match=r"onnx stopped with status 1: .+"):
        device.run_in_engine(b"not a model", "onnx", path, 1, 1)


@pytest.mark.usefixtures("little_room")
def test_no_room_for_temporary_files_is_one_line(
    pictures: NDArray[np.uint8], reference: NDArray[np.float32]
) -> None:
    full = r"temporary files: .*; make room there, or name another folder in TMPDIR$"
    photos, said = np.repeat(pictures, 50, axis=0), np.repeat(reference, 50, axis=0)
    with pytest.raises(UserError, match=full):
        run_parity({("tflite", "float32"): b""}, said, photos, said.argmax(axis=1))
    with pytest.raises(UserError, match=full):
        device.run_in_engine(bytes(2 * 10**6), "litert", Path("photos.npy"), 1, 1)
