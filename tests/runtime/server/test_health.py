"""The health checks, with an engine and a camera that stop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from runtime.common.errors import EngineError
from runtime.server import health
from runtime.server.health import CHECK_INTERVAL, UNHEALTHY_AFTER, HealthMonitor
from tests.runtime.camera.helpers import Clock


@dataclass
class FakeQueue:
    hangs: bool = False
    errors: int = 0  # of the first checks
    answered: int = 0
    gray_pictures: int = 0

    async def classify_gray(self) -> None:
        self.gray_pictures += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.gray_pictures <= self.errors:
            raise EngineError("litert computed NaN")


@dataclass
class FakeLiveView:
    alive: bool = True

    def is_alive(self) -> bool:
        return self.alive


@dataclass
class Outcome:
    passes: list[None] = field(default_factory=list)
    is_healthy: bool = False


def run_checks(queue: FakeQueue, view: FakeLiveView | None, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Runs the checks for twice UNHEALTHY_AFTER, by a clock that the test moves."""
    clock, outcome = Clock(), Outcome()
    monkeypatch.setattr(health, "time", clock)
    arguments: Any = (queue, view)
    monitor = HealthMonitor(*arguments, interval=0.0, on_pass=lambda: outcome.passes.append(None))

    async def run() -> None:
        checks = asyncio.create_task(monitor.run())
        for _ in range(round(2 * UNHEALTHY_AFTER / CHECK_INTERVAL)):
            clock.sleep(CHECK_INTERVAL)
            for _ in range(5):  # one check, and what it awaits
                await asyncio.sleep(0)
        outcome.is_healthy = monitor.is_healthy()
        checks.cancel()

    asyncio.run(run())
    return outcome


def test_an_idle_service_is_checked_with_gray_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = FakeQueue()
    outcome = run_checks(queue, FakeLiveView(), monkeypatch)
    assert outcome.is_healthy and len(outcome.passes) > 1 and queue.gray_pictures > 0


def test_a_service_whose_engine_hangs_becomes_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run_checks(FakeQueue(hangs=True), None, monkeypatch)
    assert not outcome.is_healthy and len(outcome.passes) == 1  # the first check sees no idle time yet


def test_a_service_whose_camera_thread_ended_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run_checks(FakeQueue(), FakeLiveView(alive=False), monkeypatch)
    assert not outcome.is_healthy and outcome.passes == []


def test_the_checks_continue_after_an_engine_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = FakeQueue(errors=3)
    outcome = run_checks(queue, None, monkeypatch)
    assert outcome.is_healthy and len(outcome.passes) > 1 and queue.gray_pictures > 3
    assert capsys.readouterr().err == "error: health check failed: litert computed NaN\n"  # once


def test_a_service_whose_engine_always_fails_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run_checks(FakeQueue(errors=10**6), None, monkeypatch).is_healthy
