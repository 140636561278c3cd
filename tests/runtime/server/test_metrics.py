"""What Prometheus reads, of a model with an odd name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runtime.inference.model_reloader import ReloadingClassifier
from runtime.server.inference_queue import InferenceQueue
from runtime.server.metrics import Metrics


def test_names_that_no_utf8_holds_are_escaped(knowing: Path) -> None:
    live = ReloadingClassifier(knowing)
    classifier = live.now()
    contract = replace(classifier.model.contract, name='caf\udce9 "1"')
    classifier.model = replace(classifier.model, contract=contract)
    text = Metrics(InferenceQueue(live), None).text().decode()
    assert r'name="caf\\udce9 \"1\""' in text
