"""Each gate passes at its bound and fails beyond it."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from export.parity.gates import FAILED, GATES, PASSED, TOO_FEW_PHOTOS, broken_bounds, failures, verdict
from tests.export.parity.results import RESULT


@pytest.mark.parametrize(
    ("precision", "passes", "fails", "fact"),
    [
        ("float32", {"max_dp": 1e-4}, {"max_dp": 1.1e-4}, r"max \|Δp\|"),
        ("float16", {"max_dp": 5e-3}, {"max_dp": 5.1e-3}, r"max \|Δp\|"),
        ("dynamic", {"max_dp": 0.5}, {"max_dp": 0.501}, r"max \|Δp\|"),
        ("dynamic", {"disagreements": 10}, {"disagreements": 11}, "97.8%"),
        ("int8", {"disagreements": 10}, {"disagreements": 11}, "97.8%"),
        ("int8", {"p99_dp": 0.12}, {"p99_dp": 0.121}, "99th percentile"),
        ("int8", {"max_dp": 0.25}, {"max_dp": 0.251}, r"max \|Δp\|"),
        ("int8", {"top1": 0.89}, {"top1": 0.888}, r"top-1 .* 1\.2 points"),
        # Fewer photos: 2 % of n, rounded up, may disagree, and bounds on shares and percentiles do not apply.
        (
            "int8",
            {"n": 40, "disagreements": 1, "p99_dp": 0.2, "top1": 0.875},
            {"n": 40, "disagreements": 2},
            "limit 1",
        ),
        ("dynamic", {"n": 249, "disagreements": 5}, {"n": 249, "disagreements": 6}, "limit 5"),
        ("int8", {"n": 1, "disagreements": 1}, {"n": 1, "max_dp": 0.26}, r"max \|Δp\|"),
        ("float32", {"n": 3}, {"n": 3, "max_dp": 0.01}, r"max \|Δp\|"),
        ("float32", {"max_dfeatures": 1e-3}, {"max_dfeatures": 1.1e-3}, "features differ"),
        ("float16", {"max_dfeatures": 0.02}, {"max_dfeatures": 0.021}, "features differ"),
        ("dynamic", {"max_dfeatures": 0.2}, {"max_dfeatures": 0.21}, "features differ"),
        ("int8", {"max_dfeatures": 0.2}, {"max_dfeatures": 0.21}, "features differ"),
        ("int8", {}, {"max_dfeatures": math.nan}, "features differ"),
        ("float16", {"max_dknown": 5e-3}, {"max_dknown": 5.1e-3}, r"max \|Δ known\|"),
        ("int8", {"known_disagreements": 5}, {"known_disagreements": 6}, "6 of 500 .*limit 5"),
        ("int8", {"n": 299, "known_disagreements": 2}, {"n": 299, "known_disagreements": 3}, "limit 2"),
        ("int8", {"n": 40, "known_disagreements": 1}, {"n": 40, "known_disagreements": 2}, "limit 1"),
        ("full_int8", {"disagreements": 5}, {"disagreements": 6}, "98.8% is under 99.0%"),
        ("full_int8", {"p99_dp": 0.06}, {"p99_dp": 0.061}, "99th percentile"),
        ("full_int8", {"max_dp": 0.25}, {"max_dp": 0.251}, "max"),
        ("full_int8", {"top1": 0.89}, {"top1": 0.888}, "top-1"),
        ("full_int8", {"known_disagreements": 5}, {"known_disagreements": 6}, "6 of 500 .*limit 5"),
        ("full_int8", {"max_dfeatures": 0.2}, {"max_dfeatures": 0.21}, "features differ"),
        ("float16 arithmetic", {"max_dp": 0.05}, {"max_dp": 0.051}, r"max \|Δp\|"),
        ("float16 arithmetic", {"max_dfeatures": 0.02}, {"max_dfeatures": 0.021}, "features differ"),
        ("float16 arithmetic", {"max_dknown": 0.6}, {"max_dknown": 0.6, "max_dp": math.inf}, r"max \|Δp\|"),
        ("float16 arithmetic", {"known_disagreements": 10}, {"known_disagreements": 11}, "11 of 500"),
        ("float32", {}, {"max_dp": math.nan}, r"max \|Δp\|"),
        ("dynamic", {}, {"error": "returns no finite number"}, "no finite number"),
    ],
)
def test_a_gate_passes_at_its_bound_and_fails_beyond_it(
    precision: str, passes: dict[str, float], fails: dict[str, float], fact: str
) -> None:
    result = replace(RESULT, precision=precision)
    assert broken_bounds(replace(result, **passes)) == []
    (line,) = failures([replace(result, **passes), replace(result, **fails)])
    assert line.startswith(f"tflite {precision} in litert 2.3.0: ")
    assert re.search(fact, line)
    assert "error" in fails or line.endswith(GATES[precision].next_step)
    assert verdict(replace(result, **fails)) == FAILED


@pytest.mark.parametrize(
    ("precision", "n", "expected"),
    [
        ("int8", 250, PASSED),
        ("int8", 249, TOO_FEW_PHOTOS),
        ("full_int8", 249, TOO_FEW_PHOTOS),
        ("dynamic", 249, TOO_FEW_PHOTOS),
        ("float32", 1, PASSED),
        ("float16", 1, PASSED),
    ],
)
def test_a_gate_with_rates_never_passes_on_too_few_photos(precision: str, n: int, expected: str) -> None:
    assert verdict(replace(RESULT, precision=precision, n=n)) == expected


@pytest.mark.parametrize(
    ("precision", "n", "limit"), [("full_int8", 100, 1), ("full_int8", 50, 1), ("int8", 100, 2)]
)
def test_fewer_photos_have_the_bound_of_their_precision(precision: str, n: int, limit: int) -> None:
    """Targets such as a simulator are compared on at most 50 or 100 photos."""
    result = replace(RESULT, precision=precision, n=n)
    assert verdict(replace(result, disagreements=limit)) == TOO_FEW_PHOTOS
    assert verdict(replace(result, disagreements=limit + 1)) == FAILED
    assert verdict(replace(result, known_disagreements=math.ceil(n / 100))) == TOO_FEW_PHOTOS
    assert verdict(replace(result, known_disagreements=math.ceil(n / 100) + 1)) == FAILED


def test_the_unknown_decision_has_a_limit_for_every_precision() -> None:
    few = replace(RESULT, precision="dynamic", n=500, known_disagreements=10, max_dknown=0.2)
    assert broken_bounds(few) == []
    (bound,) = broken_bounds(replace(few, known_disagreements=11))
    assert "11 of 500" in bound and "limit 10" in bound


@pytest.mark.parametrize("precision", ["dynamic", "int8", "full_int8"])
def test_known_of_a_quantized_file_may_not_move_far_even_where_no_decision_changes(precision: str) -> None:
    """Nearly all test photos are known, so `known` could be 1 for every picture."""
    constant = replace(RESULT, precision=precision, known_disagreements=0, max_dknown=0.6)
    (bound,) = broken_bounds(constant)
    assert "max |Δ known| 0.6 is over 0.5" in bound
    assert broken_bounds(replace(constant, max_dknown=0.5)) == []


def test_known_of_a_float_file_has_the_bound_of_its_probabilities() -> None:
    exact = replace(RESULT, precision="float32", known_disagreements=0, max_dknown=1e-4)
    assert broken_bounds(exact) == []
    (bound,) = broken_bounds(replace(exact, max_dknown=2e-4))
    assert "0.0002" in bound and "0.0001" in bound
