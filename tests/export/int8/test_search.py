"""The search accepts the first recipe that meets the aim, or else the best one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from export.formats import INT8_CONVERTERS
from export.int8 import search
from export.int8.quantize import Recipe
from export.int8.search import Int8File, find_int8
from export.int8.weight_codes import WeightCodes
from export.parity.photo_counts import PhotoCounts
from export.parity.result import FileKey, ParityResult
from export.parity.runner import ParityReference
from export.time_left import ExportClock, Workload
from tests.export.parity.results import RESULT

if TYPE_CHECKING:
    import keras

BEST = search.RECIPES[0]


def find(model: keras.Model, reference: ParityReference, *formats: str) -> dict[str, Int8File]:
    converters = {format: INT8_CONVERTERS[format] for format in formats}
    workload = Workload(0.001, 1000, 4, BEST.name, 8, 8, 8, PhotoCounts(8, 8), ("litert", "onnx"), 2)
    clock = ExportClock(workload, {})
    return find_int8(model, converters, reference.photos, reference, ("litert", "onnx"), clock)


def test_the_first_recipe_that_meets_the_aim_is_accepted(
    model: keras.Model,
    reference: ParityReference,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(search, "AIM_MAX_DP", 1.0)
    monkeypatch.setattr(search, "AIM_AGREEMENT", 0.0)
    files = find(model, reference, "tflite", "onnx")
    assert [file.recipe for file in files.values()] == [BEST.name] * 2
    assert "recipe gptq:" not in capsys.readouterr().out


def test_without_an_accepted_recipe_the_best_one_goes_to_the_gates(
    model: keras.Model,
    reference: ParityReference,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def clip(activations: NDArray[np.float32]) -> float:
        return float(np.percentile(activations, 90))

    bad = Recipe("bad", weight_codes=WeightCodes(63), activation_range=clip, float_first=False)
    monkeypatch.setattr(search, "RECIPES", (bad, BEST))
    monkeypatch.setattr(search, "AIM_MAX_DP", 0.0)
    assert find(model, reference, "onnx")["onnx"].recipe == BEST.name
    printed = capsys.readouterr().out
    assert "onnx, recipe bad" in printed and "max |Δp| over 0" in printed
    assert f"no recipe reaches the aim; the gates now check the best one, {BEST.name}" in printed


def test_a_recipe_that_breaks_a_bound_of_known_is_not_accepted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The aim bounds labels and probabilities; the gates also bound `known` and features."""
    first = replace(RESULT, known_disagreements=0, max_dknown=0.6)
    assert chosen_recipe(first, monkeypatch) == search.RECIPES[1].name
    assert f"recipe {BEST.name}: " in (printed := capsys.readouterr().out)
    assert "max |Δ known| 0.6 is over 0.5" in printed and "no recipe" not in printed


@pytest.mark.parametrize(("n", "disagreements", "accepted"), [(30, 1, True), (30, 2, False), (200, 1, True)])
def test_one_of_few_validation_photos_may_get_another_label(
    n: int, disagreements: int, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replace(RESULT, n=n, disagreements=disagreements, max_dp=0.02)
    assert (chosen_recipe(first, monkeypatch) == BEST.name) == accepted


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"known_disagreements": 0, "max_dknown": 0.6}, {"disagreements": 5, "max_dp": 0.2}),
        ({"disagreements": 6, "max_dp": 0.1}, {"disagreements": 5, "max_dp": 0.2}),
        ({"disagreements": 5, "max_dp": 0.2}, {"disagreements": 5, "max_dp": 0.1}),
    ],
    ids=["a broken gate", "another label", "a larger difference"],
)
def test_the_best_of_several_recipes_without_an_accepted_one(
    worse: dict[str, float], better: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = search.RECIPES[:2]
    monkeypatch.setattr(search, "RECIPES", (first, second))
    results = [replace(RESULT, **figures) for figures in (worse, better)]
    assert chosen_recipe(results[0], monkeypatch, results[1]) == second.name
    assert chosen_recipe(results[1], monkeypatch, results[0]) == first.name


def chosen_recipe(
    first: ParityResult, monkeypatch: pytest.MonkeyPatch, second_result: ParityResult = RESULT
) -> str:
    """The recipe that is chosen if the first two have these results."""
    second = search.RECIPES[1]
    results = {BEST.name: first, second.name: second_result}
    monkeypatch.setattr(search, "quantize", lambda model, photos, recipe, step: recipe.name)
    monkeypatch.setattr(
        search, "run_parity", lambda files, *_: [results[data.decode()] for data in files.values()]
    )
    clock = ExportClock(Workload(0.001, 1000, 4, BEST.name, 8, 8, 8, PhotoCounts(8, 8), ("onnx",), 2), {})
    photos = np.zeros((1, 8, 8, 3), np.uint8)
    reference = ParityReference(photos, np.zeros(1, np.int64), np.ones((1, 2), np.float32))
    converters = {"onnx": lambda model, quantized: str(quantized).encode()}
    return find_int8(None, converters, photos, reference, ("onnx",), clock)["onnx"].recipe


def test_a_recipe_that_fails_in_another_engine_on_some_of_the_photos_is_not_accepted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compared = []

    def run_parity(
        files: dict[FileKey, bytes], reference: ParityReference, engines: list[str], *_: object
    ) -> list[ParityResult]:
        (data,) = files.values()
        compared.append((data.decode(), engines, len(reference.photos)))
        wrong = 10 if data.decode() == BEST.name and engines == ["openvino"] else 0
        return [replace(RESULT, format="onnx", n=len(reference.photos), disagreements=wrong)]

    monkeypatch.setattr(search, "quantize", lambda model, photos, recipe, step: recipe.name)
    monkeypatch.setattr(search, "run_parity", run_parity)
    engines = ("onnx", "openvino")
    clock = ExportClock(Workload(0.001, 1000, 4, BEST.name, 8, 60, 50, PhotoCounts(8, 8), engines, 2), {})
    photos = np.zeros((60, 8, 8, 3), np.uint8)
    reference = ParityReference(photos, np.zeros(60, np.int64), np.ones((60, 2), np.float32))
    converters = {"onnx": lambda model, quantized: str(quantized).encode()}
    chosen = find_int8(None, converters, photos, reference, engines, clock)["onnx"].recipe
    assert chosen == search.RECIPES[1].name
    assert compared[:2] == [(BEST.name, ["onnx"], 60), (BEST.name, ["openvino"], 50)]
    printed = capsys.readouterr().out
    assert f"recipe {BEST.name}: agreement 80.0% of 50 photos" in printed
    assert f"recipe {search.RECIPES[1].name}: agreement 100.0% of 60 photos" in printed
