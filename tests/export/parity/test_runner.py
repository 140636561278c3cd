"""Files are compared in separate engine processes, and a bad file or engine becomes a failed result."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from export import onnx_converter
from export.metadata import embed_contract
from export.parity import engine_worker, runner
from export.parity.engine_worker import EngineHangError, EngineOutputs
from export.parity.gates import FAILED, PASSED, failures, verdict
from export.parity.result import FileKey
from export.parity.runner import TIMED, ParityReference, file_engine_pairs, limit_photos, run_parity
from export.serving_model import golden_answer, predict
from runtime import Classifier
from runtime.common.errors import EngineError, ModelError, UserError
from runtime.inference.engines import engine_name
from runtime.inference.model_proof import check_answer
from runtime.model_file.contract import Contract
from tests.export.conftest import small_model

Files = dict[FileKey, bytes]


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_known_is_compared_with_the_models_own(engine: str, pictures: NDArray[np.uint8]) -> None:
    model = small_model(known=True)
    outputs = predict(model, pictures, lambda done: None)
    threshold = float(np.median(outputs["known"]))
    files = {FileKey("onnx", "float32"): onnx_converter.float32(model)}
    right = ParityReference(
        pictures,
        outputs["probabilities"].argmax(axis=1),
        outputs["probabilities"],
        outputs["known"],
        threshold,
    )
    (same,) = run_parity(files, right, [engine])
    assert (
        same.engine.startswith(f"{engine} ")
        and same.known_disagreements == 0
        and same.max_dknown is not None
        and same.max_dknown < 1e-5
    )
    (different,) = run_parity(files, replace(right, known=1 - outputs["known"]), [engine])
    assert verdict(different) == FAILED


def test_a_file_without_known_fails_if_the_model_has_it(
    float_files: Files, reference: ParityReference
) -> None:
    expected = replace(reference, known=np.ones((len(reference.photos), 1), np.float32), known_threshold=0.5)
    (result,) = run_parity({FileKey("onnx", "float16"): float_files["onnx", "float16"]}, expected, ["onnx"])
    assert "known" in result.error and verdict(result) == FAILED


def test_the_uncompressed_models_answers_are_compared_too(
    float_files: Files, reference: ParityReference
) -> None:
    other = reference.probabilities.argmax(axis=1)
    other[:2] = (other[:2] + 1) % reference.probabilities.shape[1]
    files = {FileKey("onnx", "float32"): float_files["onnx", "float32"]}
    (result,) = run_parity(files, replace(reference, uncompressed=other), ["onnx"])
    assert result.disagreements == 0 and result.uncompressed_disagreements == 2
    assert result.uncompressed_agreement == pytest.approx(1 - 2 / len(reference.photos))


def test_features_are_compared_with_the_models_own(float_files: Files, pictures: NDArray[np.uint8]) -> None:
    outputs = predict(small_model(), pictures, lambda done: None)
    right = ParityReference(
        pictures,
        outputs["probabilities"].argmax(axis=1),
        outputs["probabilities"],
        features=outputs["features"],
    )
    files = {FileKey("onnx", "float32"): float_files["onnx", "float32"]}
    (same,) = run_parity(files, right, ["onnx"])
    assert same.max_dfeatures is not None and same.max_dfeatures < 1e-5 and verdict(same) == PASSED
    moved = outputs["features"].copy()
    moved[3] *= np.float32(1.01)  # of one photo
    (different,) = run_parity(files, replace(right, features=moved), ["onnx"])
    assert different.max_dfeatures == pytest.approx(0.01, rel=0.05) and verdict(different) == FAILED
    (missing,) = run_parity(files, replace(right, features=moved[:, 1:]), ["onnx"])
    assert "features" in missing.error and verdict(missing) == FAILED


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda p: p * np.float32(0.5), "sum to 0.500"),
        (lambda p: np.where(p == p.max(), np.nan, p).astype(np.float32), "no finite number for 1 photos"),
        (lambda p: p[:, :2], r"\[2\] probabilities .* \[3\]"),
        (lambda p: p.astype(np.float64), "float64"),
        (lambda p: p + np.array([-0.9, 0.9, 0], np.float32), "sum to"),
    ],
)
def test_outputs_that_break_the_contract_fail(
    change: object, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], np.float32)
    outputs = EngineOutputs("engine 1", change(expected), np.ones(2, np.float32))  # type: ignore[operator]
    monkeypatch.setattr(runner, "run_in_engine", lambda *_: outputs)
    reference = ParityReference(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), expected)
    (result,) = run_parity({FileKey("onnx", "int8"): b""}, reference, ["onnx"])
    assert re.search(fact, result.error)
    assert failures([result]) and verdict(result) == FAILED


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        (lambda p: np.roll(p, 1, axis=1), r"max \|Δp\| 0\.7 is over 0\.25"),
        (lambda p: p * np.float32(0.5), "on 2 threads: .* sum to 0.500"),
        (None, "on 2 threads: onnx stopped with status -11"),
    ],
)
def test_an_answer_on_all_cores_must_be_right_too(
    answer: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None,
    fact: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], np.float32)

    def run(data: bytes, engine: str, photos: Path, n: int, threads: int, *_: object) -> EngineOutputs:
        if threads > 1 and answer is None:
            raise EngineError("onnx stopped with status -11: no message")
        found = answer(expected) if threads > 1 and answer else expected
        return EngineOutputs("engine 1", found, np.ones(2, np.float32))

    monkeypatch.setattr(runner, "default_threads", lambda: 2)
    monkeypatch.setattr(runner, "run_in_engine", run)
    reference = ParityReference(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), expected)
    (result,) = run_parity({FileKey("onnx", "int8"): b""}, reference, ["onnx"])
    assert verdict(result) == FAILED
    assert re.search(fact, failures([result])[0])


def test_a_file_that_a_service_would_refuse_fails(
    float_files: Files, reference: ParityReference, contract: Contract, tmp_path: Path
) -> None:
    """Its answers to all photos are right, so the other gates pass."""
    answer = golden_answer(small_model())
    least = min(answer.probabilities)
    wrong = replace(answer, probabilities=tuple(float(p == least) for p in answer.probabilities))
    contract = replace(contract, version=2, release=1, features=small_model().output_shape[-1][-1])
    files = {key: float_files[key] for key in (FileKey("tflite", "dynamic"), FileKey("onnx", "float32"))}
    steps = list[str]()
    for golden, refused in ((answer, False), (wrong, True)):
        stated = replace(contract, golden=golden)
        compared = replace(reference, contract=stated)
        results = run_parity(files, compared, ["litert", "onnx"], lambda *pair: steps.append(str(pair)))
        for result in results:
            assert (verdict(result) == FAILED) is refused
            assert ("of its test picture differs by " in result.refusal) is refused
            assert not result.error and result.ms > 0
    assert len(steps) == 2 * 2 * 2 * len(reference.photos)  # the golden picture is not counted
    for result in results:  # the same check as that of the service
        path = tmp_path / f"model.{result.format}"
        path.write_bytes(embed_contract(files[result.file], result.format, stated))
        with pytest.raises(ModelError, match=re.escape(result.refusal)):
            check_answer(Classifier(path, engine=engine_name(result.engine)))
    line, _ = failures(results)
    assert "a device would refuse it: a probability of its test picture" in line and "--int8" in line


def test_other_files_continue_after_one_that_an_engine_cannot_run(
    float_files: Files, reference: ParityReference
) -> None:
    good = float_files["tflite", "float32"]
    files = {FileKey("tflite", "float32"): good, FileKey("tflite", "dynamic"): good[: len(good) // 2]}
    steps: list[tuple[FileKey, str]] = []
    results = run_parity(files, reference, ["litert"], lambda file, engine: steps.append((file, engine)))
    assert [bool(result.error) for result in results] == [False, True]
    assert "litert" in results[1].error and "status" in results[1].error
    assert len(failures(results)) == 1
    assert set(steps) == {(FileKey("tflite", "float32"), "litert")}
    assert len(steps) == len(reference.photos) + min(TIMED, len(reference.photos))


def test_parts_of_the_photos_in_several_processes_give_the_same_result(
    float_files: Files, reference: ParityReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = run_parity({FileKey("onnx", "float32"): float_files["onnx", "float32"]}, reference, ["onnx"])
    monkeypatch.setattr(runner, "MIN_PART", 3)
    monkeypatch.setattr(runner, "default_threads", lambda: 2)
    started: list[tuple[int, int]] = []
    run_in_engine = runner.run_in_engine

    def run_and_note(data: bytes, engine: str, photos: Path, n: int, *rest: Any) -> EngineOutputs:
        started.append((n, rest[2] if len(rest) == 3 else -1))
        return run_in_engine(data, engine, photos, n, *rest)

    monkeypatch.setattr(runner, "run_in_engine", run_and_note)
    steps: list[str] = []
    (parts,) = run_parity(
        {FileKey("onnx", "float32"): float_files["onnx", "float32"]},
        reference,
        ["onnx"],
        lambda file, engine: steps.append(engine),
    )
    assert sorted(started) == [(4, 0), (4, 4), (8, -1)], "two parts, then the latency"
    assert len(steps) == 16
    assert replace(parts, ms=whole.ms) == whole


def test_an_error_in_one_part_is_the_error_of_the_file(
    float_files: Files, reference: ParityReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MIN_PART", 3)
    monkeypatch.setattr(runner, "default_threads", lambda: 2)
    n = len(reference.photos) // 2
    first = EngineOutputs("engine 1", reference.probabilities[:n], np.ones(n, np.float32))

    def fail_in_the_second_part(*arguments: Any) -> EngineOutputs:
        if arguments[6]:
            raise EngineError("engine stopped with status 9: killed")
        return first

    monkeypatch.setattr(runner, "run_in_engine", fail_in_the_second_part)
    (result,) = run_parity({FileKey("onnx", "int8"): b""}, reference, ["onnx"])
    assert "status 9" in result.error and verdict(result) == FAILED


def test_the_first_engine_of_a_format_does_not_depend_on_the_order_of_the_flag() -> None:
    pairs = file_engine_pairs([FileKey("tflite", "int8")], ["tflite", "onnx", "litert"])
    assert [engine for _, engine in pairs] == ["litert", "tflite"]


@pytest.mark.parametrize(
    ("photos", "workers", "parts"),
    [(8, 2, [8]), (49, 2, [49]), (50, 2, [25, 25]), (201, 4, [50, 50, 50, 51]), (60, 8, [30, 30])],
)
def test_small_sets_of_photos_are_not_divided(photos: int, workers: int, parts: list[int]) -> None:
    ranges = runner.photo_parts(photos, workers)
    assert [len(part) for part in ranges] == parts
    assert [number for part in ranges for number in part] == list(range(photos))


def test_an_interrupt_stops_the_engines(float_files: Files, reference: ParityReference) -> None:
    def interrupt(file: FileKey, engine: str) -> None:
        raise KeyboardInterrupt

    files = {FileKey("onnx", "float32"): float_files["onnx", "float32"]}
    with pytest.raises(KeyboardInterrupt):
        run_parity(files, reference, ["onnx"], interrupt)


def test_the_message_of_an_engine_is_in_the_error(tmp_path: Path, pictures: NDArray[np.uint8]) -> None:
    path = tmp_path / "photos.npy"
    np.save(path, pictures)
    with pytest.raises(EngineError, match=r"onnx stopped with status 1: .+"):
        engine_worker.run_in_engine(b"not a model", "onnx", path, 1, 1)


def test_an_engine_that_hangs_is_stopped_after_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_worker, "HANG_LIMIT", 1)
    hang = "import time; print('.', end='', flush=True); time.sleep(9999)"
    steps: list[None] = []
    with pytest.raises(EngineHangError, match=r"litert computed no photo .*--engines"):
        engine_worker.run_worker(
            "litert", [sys.executable, "-c", hang], tmp_path / "out", lambda: steps.append(None)
        )
    assert len(steps) <= 1


def test_an_engine_that_hangs_ends_the_comparison_and_names_the_file(
    reference: ParityReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: object) -> NoReturn:
        raise EngineHangError("litert computed no photo")

    monkeypatch.setattr(runner, "run_in_engine", hang)
    with pytest.raises(UserError, match=r"^tflite int8: litert computed no photo"):
        run_parity({FileKey("tflite", "int8"): b""}, reference, ["litert"])


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_one_line_that_names_tmpdir(reference: ParityReference) -> None:
    many = replace(reference, photos=np.repeat(reference.photos, 50, axis=0))
    with pytest.raises(UserError, match=r"temporary files: .*TMPDIR"):
        run_parity({FileKey("tflite", "float32"): b""}, many)
    with pytest.raises(UserError, match=r"temporary files: .*TMPDIR"):
        engine_worker.run_in_engine(bytes(2 * 10**6), "litert", Path("photos.npy"), 1, 1)


@pytest.mark.parametrize("truth", [np.repeat(range(5), 10), np.tile(range(5), 10), np.arange(50) % 7 % 5])
def test_a_limit_takes_photos_of_each_class_in_turn(truth: NDArray[np.int64]) -> None:
    numbers = np.arange(50)
    columns = np.float32(numbers)[:, np.newaxis]
    photos = np.broadcast_to(np.uint8(numbers)[:, np.newaxis, np.newaxis, np.newaxis], (50, 2, 2, 3))
    whole = ParityReference(photos, truth, columns, columns, 0.25, columns, numbers)
    part = limit_photos(whole, 10)
    assert np.bincount(part.truth).tolist() == [2, 2, 2, 2, 2]
    chosen = part.photos[:, 0, 0, 0]
    assert len(set(chosen)) == 10 and (truth[chosen] == part.truth).all()
    for values in (part.probabilities, part.known, part.features, part.uncompressed):
        assert values is not None and (values.ravel() == chosen).all()
    assert part.known_threshold == 0.25 and limit_photos(whole, 50) is whole


def test_a_limit_takes_more_of_the_other_classes_when_one_has_too_few() -> None:
    truth = np.array([0] * 9 + [1])
    whole = ParityReference(np.zeros((10, 2, 2, 3), np.uint8), truth, np.eye(10, 2, dtype=np.float32))
    assert np.bincount(limit_photos(whole, 4).truth).tolist() == [3, 1]
