"""What Prometheus reads, of a model with an odd name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runtime.live import LiveClassifier
from runtime.web.metrics import Metrics
from runtime.web.service import Service


def test_names_that_no_utf8_holds_are_escaped(knowing: Path) -> None:
    live = LiveClassifier(knowing)
    classifier = live.now()
    contract = replace(classifier.model.contract, name='caf\udce9 "1"')
    classifier.model = replace(classifier.model, contract=contract)
    text = Metrics(Service(live), None).text().decode()
    assert r'name="caf\\udce9 \"1\""' in text
