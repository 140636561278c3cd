"""Spaces the requests of each address, so that thousands of small ones leave the event loop to others."""

import time
from collections.abc import Callable

# Of one address.
PHOTOS_PER_SECOND = 1000.0  # the queue in front of the engine limits them too
REQUESTS_PER_SECOND = 250.0  # a page with a camera sends 30; a proxy is one address for all its clients
REQUESTS_WITHOUT_TOKEN_PER_SECOND = 50.0  # loading the page takes 12
BURST_SECONDS = 2.0  # of requests that are answered at once after a pause
MAX_WAIT = 2.0  # seconds; with 64 connections, each request of an address waits at most 1.3
MAX_ADDRESSES = 1000  # until those without recent requests are forgotten


class RequestRate:
    """When each address may have its next request answered.

    The generic cell rate algorithm of ITU-T I.371: one time for each address.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 1 / per_second
        self._clock = clock
        self._due: dict[str, float] = {}  # the time of the next request at the exact rate

    def delay(self, address: str) -> float | None:
        """Counts a request. Returns the seconds that it must wait, 0 below the rate; None above MAX_WAIT.

        A request whose connection is closed waits too, so a client could make them wait without end.
        """
        now = self._clock()
        if address not in self._due and len(self._due) >= MAX_ADDRESSES:
            self._due = {each: due for each, due in self._due.items() if due > now}
        due = max(self._due.get(address, 0.0), now)
        wait = max(0.0, due - now - BURST_SECONDS)
        if wait > MAX_WAIT:
            return None
        self._due[address] = due + self._interval
        return wait
