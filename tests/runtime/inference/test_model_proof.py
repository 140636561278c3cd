"""A new model must answer the golden picture before it replaces the model in use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.common.errors import ModelError
from runtime.inference import model_proof, model_reloader
from runtime.inference.classifier import Classifier
from runtime.inference.model_proof import check_answer, check_outputs, prove_model
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.model_file.contract import GoldenAnswer
from runtime.model_file.golden import golden_picture
from tests.helpers import PATIENCE, wait_for
from tests.runtime.conftest import CONTRACT, write_folder
from tests.runtime.make_models import SIDE, model_path

MANY = 2**62  # iterations: they never end

Change = Callable[[onnx.ModelProto], None]


def scaled(factor: float) -> Change:
    """Multiplies the probabilities, as a damaged weight does."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
        _append(model, lambda output: helper.make_node("Mul", [output, "factor"], ["probabilities"]))

    return change


def endless(model: onnx.ModelProto) -> None:
    """Adds zero to the probabilities MANY times."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
            helper.make_node("Abs", ["carried"], ["carried_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_out", TensorProto.FLOAT, None),
        ],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.int64(MANY), "many"))
    model.graph.initializer.append(numpy_helper.from_array(np.bool_(True), "yes"))
    _append(
        model, lambda output: helper.make_node("Loop", ["many", "yes", output], ["probabilities"], body=body)
    )


def _append(model: onnx.ModelProto, make_node: Callable[[str], onnx.NodeProto]) -> None:
    for node in model.graph.node:
        node.output[:] = ["unchanged" if name == "probabilities" else name for name in node.output]
    model.graph.node.append(make_node("unchanged"))


def write_model(folder: Path, change: Change, golden: GoldenAnswer | None = None) -> Path:
    """A folder with the network in ONNX after the change."""
    model = onnx.load(model_path(False, "onnx", "float32"))
    change(model)
    contract = CONTRACT
    if golden is not None:
        model.graph.node.append(helper.make_node("Identity", ["probabilities"], ["features"]))
        model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3]))
        contract = replace(CONTRACT, version=2, release=1, features=3, golden=golden, name="colours")
    return write_folder(folder, {("onnx", "float32"): model.SerializeToString()}, contract)


def unchanged(model: onnx.ModelProto) -> None:
    pass


def probabilities_of(folder: Path) -> tuple[float, ...]:
    """The network's answer to the golden picture."""
    outputs = Classifier(folder).session(golden_picture(SIDE, SIDE)[np.newaxis])
    return tuple(map(float, outputs["probabilities"][0]))


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (scaled(float("nan")), "not from 0 to 1"),
        (scaled(float("inf")), "not from 0 to 1"),
        (scaled(-1), "not from 0 to 1"),
        (scaled(0.5), r"sum to 0\.500"),
    ],
)
def test_impossible_probabilities_are_an_error(tmp_path: Path, change: Change, fact: str) -> None:
    check_answer(Classifier(write_model(tmp_path / "good", unchanged)))
    with pytest.raises(ModelError, match=fact):
        check_answer(Classifier(write_model(tmp_path / "bad", change)))


def test_another_answer_than_the_golden_one_is_an_error(tmp_path: Path) -> None:
    right = probabilities_of(write_model(tmp_path / "first", unchanged))
    assert max(right) - min(right) > model_proof.MAX_PROBABILITY_ERROR
    swapped = (*right[1:], right[0])
    check_answer(Classifier(write_model(tmp_path / "good", unchanged, GoldenAnswer(right, None))))
    with pytest.raises(ModelError, match=r"differs by 0\.\d+ from the trained model"):
        check_answer(Classifier(write_model(tmp_path / "bad", unchanged, GoldenAnswer(swapped, None))))


def test_another_known_than_the_golden_one_is_an_error() -> None:
    """As of a file whose `known` is 1 for every picture."""
    golden = GoldenAnswer((0.7, 0.2, 0.1), 0.25)
    contract = replace(CONTRACT, version=2, release=1, features=3, golden=golden, thresholds={"known": 0.5})
    outputs = {"probabilities": np.float32([golden.probabilities]), "known": np.float32([[0.75]])}
    check_outputs(outputs, contract)
    for known, fact in ((0.76, "`known` of its test picture is 0.760"), (np.nan, "not from 0 to 1")):
        with pytest.raises(ModelError, match=fact):
            check_outputs({**outputs, "known": np.float32([[known]])}, contract)


def test_the_proof_returns_the_sha256_or_the_reason(tmp_path: Path) -> None:
    good, bad = write_model(tmp_path / "good", unchanged), write_model(tmp_path / "bad", scaled(0.5))
    options = {"engine": "auto", "threads": 1, "top": 3, "key": None}
    assert prove_model(good, options) == Classifier(good).model.sha256
    with pytest.raises(ModelError, match="sum to"):
        prove_model(bad, options)
    with pytest.raises(ModelError, match="no such file or folder"):
        prove_model(tmp_path / "none", options)


def test_a_model_that_crashes_its_process_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_proof, "START", "import os; os._exit(139)")
    with pytest.raises(ModelError, match="status 139"):
        prove_model(tmp_path, {})


@pytest.mark.slow
def test_a_model_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_proof, "PROOF_TIMEOUT", 6.0)
    folder, started = write_model(tmp_path / "endless", endless), time.monotonic()
    with pytest.raises(ModelError, match="within 6 s"):
        prove_model(folder, {})
    assert time.monotonic() - started < PATIENCE


def test_a_model_that_answers_nan_is_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_reloader, "POLL_SECONDS", 0.01)
    folder, events = write_model(tmp_path / "colours", unchanged), list[str]()
    classifier = ReloadingClassifier(folder, on_event=events.append)
    first = classifier.current()
    new = write_model(tmp_path / "new", scaled(float("nan")))
    folder.rename(tmp_path / "colours.old")
    new.rename(folder)
    wait_for(lambda: bool(events))
    assert "rejected" in events[0] and "not from 0 to 1" in events[0]
    assert classifier.current() is first


def test_a_first_model_that_answers_nan_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not from 0 to 1"):
        ReloadingClassifier(write_model(tmp_path / "colours", scaled(float("nan"))))
