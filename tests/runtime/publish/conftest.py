"""A broker and answers for the tests of this folder."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from runtime.inference.prediction import ClassScore, Prediction
from runtime.publish.answer import Answer
from tests.programs import skip_or_fail
from tests.runtime.camera.helpers import RED, plain
from tests.runtime.publish.broker import MOSQUITTO, PASSWORD, USER, Broker

MakeAnswer = Callable[..., Answer]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if MOSQUITTO is None:
        skip_or_fail("mosquitto is not installed: apt-get install mosquitto")
    (tmp_path / "broker").mkdir()
    broker = Broker(tmp_path / "broker")
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def protected(broker: Broker) -> Broker:
    """The broker, which now requires a password."""
    passwords = broker.folder / "passwords"
    command = ["mosquitto_passwd", "-b", "-c", str(passwords), USER, PASSWORD]
    subprocess.run(command, check=True, capture_output=True)
    passwords.chmod(0o644)
    broker.folder.chmod(0o755)
    broker.kill()
    broker.settings = f"allow_anonymous false\npassword_file {passwords}\nuser root"
    broker.start()
    return broker


@pytest.fixture
def make_answer() -> MakeAnswer:
    def make(label: str, *, known: bool | None = True, is_change: bool = True) -> Answer:
        prediction = Prediction("0", label, 0.9, known, (ClassScore(label, 0.9),), {})
        return Answer(prediction, datetime.now(timezone.utc), lambda: plain(RED, (600, 1200)), is_change)

    return make
