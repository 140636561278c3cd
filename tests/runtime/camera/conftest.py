"""Fixtures of the camera's tests."""

from __future__ import annotations

import pytest

from runtime.camera import camera
from tests.runtime.camera.helpers import ScriptedBackend


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    """Replaces the capture backends: the test sends the frames."""
    scripted = ScriptedBackend()
    monkeypatch.setattr(camera, "open_source", scripted.open)
    return scripted
