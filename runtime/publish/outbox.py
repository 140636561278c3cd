"""Outbox: a bounded queue between a camera, which must not wait, and a network, which may be slow."""

from collections import deque
from threading import Condition
from typing import Generic, TypeVar

REPORT_INTERVAL = 60.0  # seconds between two lines on dropped items

Item = TypeVar("Item")


class Outbox(Generic[Item]):
    """At most `capacity` items; a new item replaces the oldest one. Any thread may call the methods."""

    def __init__(self, capacity: int) -> None:
        self._items: deque[Item] = deque()
        self._capacity, self._dropped = capacity, 0
        self._added = Condition()

    def put(self, item: Item) -> None:
        """Adds an item without waiting."""
        with self._added:
            if len(self._items) == self._capacity:
                self._items.popleft()
                self._dropped += 1
            self._items.append(item)
            self._added.notify()

    def get(self, timeout: float = 0.0) -> Item | None:
        """Removes and returns the oldest item; None after `timeout` seconds without one."""
        with self._added:
            if not self._items:
                self._added.wait(timeout)
            return self._items.popleft() if self._items else None

    def is_empty(self) -> bool:
        return not self._items

    def take_dropped(self) -> int:
        """Returns how many items were replaced since the last call."""
        with self._added:
            dropped, self._dropped = self._dropped, 0
            return dropped


def too_slow(dropped: int) -> str:
    """The message of a publisher about answers that it had no time to send."""
    return f"{dropped} answers were dropped: sending is slower than classifying"
