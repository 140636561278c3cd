"""The spacing of requests."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from runtime.server import app
from runtime.server.request_rate import BURST_SECONDS, MAX_ADDRESSES, MAX_WAIT, RequestRate
from tests.helpers import wait_for
from tests.serving import serve_in_thread


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


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
    knowing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "REQUESTS_WITHOUT_TOKEN_PER_SECOND", 1.0)
    monkeypatch.setenv("VGG_EDGE_TOKEN", "a-token-of-the-test")
    with serve_in_thread(knowing) as service:

        def seconds(**headers: str) -> float:
            started = time.perf_counter()
            status, _ = service.call("GET", "/status", **headers)
            assert status == (200 if headers else 401)
            return time.perf_counter() - started

        with_token = [seconds(Authorization="Bearer a-token-of-the-test") for _ in range(6)]
        without = [seconds() for _ in range(5)]
        assert max(without[3:]) > 0.5 > min(without[:3]) and sum(with_token) < sum(without)


def test_requests_of_closed_connections_do_not_wait_without_end(
    knowing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their address is answered again as soon as the longest wait is over, and others are at once."""
    monkeypatch.setattr(app, "REQUESTS_WITHOUT_TOKEN_PER_SECOND", 10.0)
    monkeypatch.setenv("VGG_EDGE_TOKEN", "a-token-of-the-test")
    with serve_in_thread(knowing) as service:
        for _ in range(200):
            with socket.create_connection(("127.0.0.1", service.port), 5) as connection:
                connection.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: service.request("GET", "/healthz")[0] == 429)
        assert service.call("GET", "/status", Authorization="Bearer a-token-of-the-test")[0] == 200
        wait_for(lambda: service.request("GET", "/healthz")[0] == 200)
