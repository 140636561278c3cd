"""A prediction's answer, and its columns on a terminal."""

from __future__ import annotations

import json

import pytest

from runtime.inference.prediction import ClassScore, Prediction, answer_columns, json_line


def prediction(known: bool | None) -> Prediction:
    top = (ClassScore("roses", 0.9), ClassScore("tulips", 0.1))
    return Prediction("photo.jpg", "roses", 0.9, known, top, {"decode": 1.0, "infer": 2.0})


@pytest.mark.parametrize(("known", "answer"), [(True, "roses"), (None, "roses"), (False, "unknown")])
def test_the_answer_is_unknown_when_the_model_says_so(known: bool | None, answer: str) -> None:
    assert prediction(known).answer == answer
    assert prediction(known).label == "roses"


def test_json_has_the_fields_of_the_prediction_and_no_answer() -> None:
    fields = json.loads(json_line(prediction(False), frame=3))
    assert list(fields) == ["source", "label", "probability", "known", "top", "ms", "frame"]
    assert fields["top"][1] == {"label": "tulips", "probability": 0.1}


def test_the_columns_name_the_nearest_class_of_an_unknown_picture() -> None:
    answer, others, remark = answer_columns(["roses", "tulips"])(prediction(False), "2 ms")
    assert answer.startswith("unknown") and "roses 0.90" in answer
    assert (others, remark) == ("tulips 10.0%", "2 ms")
