"""Outbox: it is bounded, keeps the newest items, and never waits to take one."""

from __future__ import annotations

import threading
import time

from runtime.publish.outbox import Outbox
from tests.helpers import PATIENCE


def test_a_full_outbox_drops_its_oldest_items() -> None:
    outbox = Outbox[int](3)
    for number in range(10):
        outbox.put(number)
    assert [outbox.get() for _ in range(4)] == [7, 8, 9, None]
    assert outbox.take_dropped() == 7 and outbox.take_dropped() == 0 and outbox.is_empty()


def test_an_item_wakes_a_waiting_thread() -> None:
    outbox = Outbox[str](1)
    threading.Timer(0.05, outbox.put, ["now"]).start()
    started = time.perf_counter()
    assert outbox.get(timeout=2 * PATIENCE) == "now" and time.perf_counter() - started < PATIENCE
