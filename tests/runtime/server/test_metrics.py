"""Prometheus metrics of a model with an unusual name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runtime.inference.model_reloader import ReloadingClassifier
from runtime.server.inference_queue import InferenceQueue
from runtime.server.metrics import Metrics


def test_a_name_that_utf8_cannot_encode_is_escaped(knowing: Path) -> None:
    model = ReloadingClassifier(knowing)
    classifier = model.current()
    contract = replace(classifier.model.contract, name='caf\udce9 "1"')
    classifier.model = replace(classifier.model, contract=contract)
    text = Metrics(InferenceQueue(model), None).text().decode()
    assert r'name="caf\\udce9 \"1\""' in text
