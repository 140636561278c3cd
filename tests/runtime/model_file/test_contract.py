"""A contract is parsed field by field, and each wrong field is rejected with its reason."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from runtime.common.errors import ModelError
from runtime.model_file.contract import Contract, GoldenAnswer
from runtime.model_file.files import MAX_JSON_BYTES
from tests.runtime.conftest import CONTRACT

VERSION_2 = replace(
    CONTRACT,
    version=2,
    thresholds={"known": 0.5},
    features=8,
    release=3,
    golden=GoldenAnswer((0.25, 0.5, 0.25), 0.75),
    statistics_sha256="c" * 64,
)


def changed(**fields: object) -> str:
    return json.dumps({**json.loads(CONTRACT.to_json()), **fields})


def test_a_contract_survives_writing_and_reading() -> None:
    assert Contract.from_json(CONTRACT.to_json()) == CONTRACT


def changed_2(**fields: object) -> str:
    return json.dumps({**json.loads(VERSION_2.to_json()), **fields})


def changed_golden(**fields: object) -> str:
    return changed_2(golden={**json.loads(VERSION_2.to_json())["golden"], **fields})


def test_version_2_survives_writing_and_reading() -> None:
    text = VERSION_2.to_json()
    contract = Contract.from_json(text)
    assert contract == VERSION_2
    assert contract.model_id == hashlib.sha256(text.encode()).hexdigest() and "model_id" not in text
    without_known = replace(VERSION_2, thresholds={}, golden=GoldenAnswer((1.0, 0.0, 0.0), None))
    assert Contract.from_json(without_known.to_json()) == without_known


def test_version_1_has_no_field_of_version_2() -> None:
    assert json.loads(CONTRACT.to_json()).keys() < json.loads(VERSION_2.to_json()).keys()
    contract = Contract.from_json(changed(features=8, release=3, golden={}, statistics_sha256="x"))
    assert (contract.features, contract.release, contract.golden) == (None, 0, None)
    assert contract.statistics_sha256 == ""


def test_one_changed_byte_gives_another_model_id() -> None:
    ids = {Contract.from_json(text).model_id for text in (VERSION_2.to_json(), VERSION_2.to_json() + " ")}
    assert len(ids) == 2


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
        (changed(version=3), "contract version 3, this runtime reads versions 1 and 2: upgrade"),
        (changed(version=0), "export the model again"),
        (changed(version=True), "'version' is not of type int"),
        (changed(name="a\nb"), "the name is not one of"),
        (changed(name="\ud800"), "the name is not one of"),  # no file and no answer could hold it
        (changed(name=""), "the name is not one of"),
        # A page or a file with this name would lie in another folder.
        (changed(name="../notes"), "the name is not one of"),
        (changed(name="..\\notes"), "the name is not one of"),
        (changed(name="C:notes"), "the name is not one of"),
        (changed(labels=["one"]), "labels must be 2"),
        (changed(labels=["a", "a"]), "different"),
        (changed(labels=[str(number) for number in range(10_001)]), "labels must be 2 to 10,000"),
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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (changed(version=2), "lacks the field 'features'"),
        (changed_2(features=0), "features must be 1 to"),
        (changed_2(features=10**9), "features must be 1 to"),
        (changed_2(features=8.0), "'features' is not of type int"),
        (changed_2(release=0), "release must be 1 to"),
        (changed_2(release=10**400), "release must be 1 to"),
        (changed_2(statistics_sha256="c" * 63), "statistics_sha256"),
        (changed_2(statistics_sha256="C" * 64), "statistics_sha256"),
        (changed_2(statistics_sha256="c" * 64 + "\n"), "statistics_sha256"),
        (changed_2(golden=None), "'golden' is not of type dict"),
        (changed_2(thresholds={}), r"golden\.known"),
        (changed_golden(known=None), r"golden\.known"),
        (changed_golden(known=True), r"golden\.known"),
        (changed_golden(known=float("nan")), r"golden\.known"),
        (changed_golden(probabilities=[0.5, 0.5]), r"golden\.probabilities"),
        (changed_golden(probabilities=[0.5, 0.5, "0"]), r"golden\.probabilities"),
        (changed_golden(probabilities=[0.5, 0.5, float("inf")]), r"golden\.probabilities"),
        (changed_golden(probabilities=[0.5, 0.5, -(10**400)]), r"golden\.probabilities"),
    ],
)
def test_a_wrong_field_of_version_2_is_rejected_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        Contract.from_json(text)
