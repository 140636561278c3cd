"""The spacing of requests."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from runtime.server import app
from runtime.server.request_rate import BURST_SECONDS, MAX_ADDRESSES, MAX_WAIT, RequestRate
from tests.helpers import PATIENCE, wait_for
from tests.serving import serve_in_thread


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of a service whose requests come faster than any rate."""
    clock = Clock()
    monkeypatch.setattr(app, "RequestRate", lambda per_second: RequestRate(per_second, clock))
    return clock


def test_a_burst_is_answered_at_once_and_then_the_rate_holds() -> None:
    rate = RequestRate(10, Clock())
    delays = [rate.delay("a") for _ in range(60)]
    burst, waiting = int(10 * BURST_SECONDS), int(10 * MAX_WAIT)
    assert delays[: burst + 1] == [0.0] * (burst + 1)
    spaced = delays[burst + 1 : burst + waiting + 1]
    assert spaced == pytest.approx([0.1 * number for number in range(1, waiting + 1)])
    assert set(delays[burst + waiting + 1 :]) == {None}


def test_other_addresses_do_not_wait_and_a_pause_restores_the_burst() -> None:
    clock = Clock()
    rate = RequestRate(10, clock)
    for _ in range(100):
        rate.delay("a")
    assert rate.delay("a") is None and rate.delay("b") == 0
    clock.now += MAX_WAIT + 2 * BURST_SECONDS
    assert [rate.delay("a") for _ in range(20)] == [0.0] * 20


def test_addresses_without_recent_requests_are_forgotten() -> None:
    clock = Clock()
    rate = RequestRate(10, clock)
    for number in range(MAX_ADDRESSES):
        rate.delay(str(number))
    clock.now += 1
    rate.delay("new")
    assert rate._due.keys() == {"new"}


def test_requests_without_the_token_are_spaced_and_those_with_it_are_not(
    knowing: Path, stopped: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "REQUESTS_WITHOUT_TOKEN_PER_SECOND", 1.0)
    monkeypatch.setenv("VGG_EDGE_TOKEN", "a-token-of-the-test")
    with serve_in_thread(knowing) as service:

        def seconds(expected: int, **headers: str) -> float:
            started = time.perf_counter()
            assert service.call("GET", "/status", **headers)[0] == expected
            return time.perf_counter() - started

        for _ in range(6):
            seconds(200, Authorization="Bearer a-token-of-the-test")
        waited = [seconds(401) for _ in range(5)]
        assert waited[3] >= 1.0 and waited[4] >= 2.0
        seconds(429)


@pytest.mark.parametrize(
    "slow", ["PHOTOS_PER_SECOND", "REQUESTS_PER_SECOND", "REQUESTS_WITHOUT_TOKEN_PER_SECOND"]
)
def test_each_kind_of_request_has_a_rate_of_its_own(
    slow: str, knowing: Path, red_jpeg: bytes, stopped: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, slow, 0.1)  # the second request would wait for 8 s
    monkeypatch.setenv("VGG_EDGE_TOKEN", "a-token-of-the-test")
    credentials = {"Authorization": "Bearer a-token-of-the-test"}
    with serve_in_thread(knowing) as service:
        statuses = {
            "PHOTOS_PER_SECOND": [service.classify(red_jpeg, **credentials)[0] for _ in range(2)],
            "REQUESTS_PER_SECOND": [service.get_status("/status", **credentials) for _ in range(2)],
            "REQUESTS_WITHOUT_TOKEN_PER_SECOND": [service.get_status("/healthz") for _ in range(2)],
        }
    assert statuses == {name: [200, 429 if name == slow else 200] for name in statuses}


def test_requests_of_closed_connections_do_not_wait_without_end(
    knowing: Path, stopped: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their address is answered again as soon as the longest wait is over, and others are at once."""
    monkeypatch.setattr(app, "REQUESTS_WITHOUT_TOKEN_PER_SECOND", 10.0)
    monkeypatch.setenv("VGG_EDGE_TOKEN", "a-token-of-the-test")
    with serve_in_thread(knowing) as service:
        for _ in range(200):
            with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as connection:
                connection.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: service.request("GET", "/healthz")[0] == 429)
        assert service.call("GET", "/status", Authorization="Bearer a-token-of-the-test")[0] == 200
        stopped.now += MAX_WAIT + 2 * BURST_SECONDS
        wait_for(lambda: service.request("GET", "/healthz")[0] == 200)
