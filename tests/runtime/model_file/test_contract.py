"""A contract is parsed field by field, and each wrong field is rejected with its reason."""

from __future__ import annotations

import json

import pytest

from runtime.common.errors import ModelError
from runtime.model_file.contract import Contract
from runtime.model_file.files import MAX_JSON_BYTES
from tests.runtime.conftest import CONTRACT


def changed(**fields: object) -> str:
    return json.dumps({**json.loads(CONTRACT.to_json()), **fields})


def test_a_contract_survives_writing_and_reading() -> None:
    assert Contract.from_json(CONTRACT.to_json()) == CONTRACT


def test_unknown_fields_are_ignored() -> None:
    assert Contract.from_json(changed(novelty="mahalanobis")) == CONTRACT


def test_labels_may_hold_zero_width_joiners() -> None:
    words = ("\u0646\u0631\u06af\u0633\u200c\u0647\u0627", "\u0d15\u0d4d\u200d\u0d37")
    assert Contract.from_json(changed(labels=words)).labels == words


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ('"' + "x" * MAX_JSON_BYTES + '"', "bytes"),
        (changed(version=2), "contract version 2, this runtime reads version 1: upgrade"),
        (changed(version=0), "export the model again"),
        (changed(version=True), "'version' is not of type int"),
        (changed(name="a\nb"), "the name is not one of"),
        (changed(name="\ud800"), "the name is not one of"),  # no file and no answer could hold it
        (changed(name=""), "the name is not one of"),
        (changed(labels=["one"]), "labels must be 2"),
        (changed(labels=["a", "a"]), "different"),
        (changed(labels=["a", "\x1b[2J"]), "printable"),
        (changed(labels=["a", 3]), "printable"),
        (changed(input_size=[224]), "input_size"),
        (changed(input_size=[224, 10**9]), "input_size"),
        (changed(resize="nearest"), "resized by 'nearest'"),
        (changed(thresholds={"known": "0.5"}), "thresholds"),
        (changed(thresholds={"known": float("nan")}), "thresholds"),
        # Found by tests/fuzz: an integer that no float holds, and messages of many lines or of a page.
        (changed(thresholds={"known": 10**400}), "thresholds"),
        (changed(resize="x" * 5000), "resized by 'x{40}'"),
        (changed(version=10**400), "contract version 100000000000,"),
        (changed(labels=["a", "\u2028"]), "printable"),
        (changed(versions={"keras": 3}), "versions"),
        (changed(created="yesterday"), "UTC"),
        (changed(synthetic=None), "'synthetic' is not of type bool"),
        (json.dumps({"version": 1}), "lacks the field 'labels'"),
    ],
)
def test_a_wrong_contract_is_rejected_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        Contract.from_json(text)
