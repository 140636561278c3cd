"""A semaphore that threads of several clients get in turns, such as for the engine.

The next turn is that of the client whose last turn is longest ago, as in fair queueing between network flows
(Nagle, RFC 970, 1985): a client that waits with many threads delays the others as one that waits with one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from threading import Lock, local

TURNS_KEPT = 1000  # clients whose last turn is remembered

_THREAD = local()  # its attribute `client` is the client that the thread works for


class LastTurns:
    """The numbers of the clients' last turns."""

    def __init__(self) -> None:
        self._count = 0
        self._last: dict[str, int] = {}  # by client, oldest first

    def take(self, client: str) -> None:
        self._count += 1
        self._last.pop(client, None)
        self._last[client] = self._count
        if len(self._last) > TURNS_KEPT:
            del self._last[next(iter(self._last))]

    def of(self, client: str) -> int:
        """The number of a client's last turn; 0 if it had none."""
        return self._last.get(client, 0)

    def recent(self, turns: int) -> Iterator[str]:
        """The clients that had one of the last `turns` turns."""
        return takewhile(lambda client: self._count - self._last[client] < turns, reversed(self._last))


class FairSemaphore:
    """A semaphore that threads get in the turns of the clients that they work for.

    Use it in a with statement. `places` threads hold it at a time. Threads of one client get it in the order
    in which they asked. A thread works for the client of `working_for`; all others are one client.
    """

    def __init__(self, places: int = 1) -> None:
        self._guard = Lock()  # of the attributes below
        self._free = places
        # Clients with the lock that their thread waits for, in the order in which they asked.
        self._waiting: list[tuple[str, Lock]] = []
        self._turns = LastTurns()

    def __enter__(self) -> None:
        waiting = (getattr(_THREAD, "client", ""), Lock())
        with self._guard:
            if self._free:
                self._free -= 1
                self._turns.take(waiting[0])
                return
            waiting[1].acquire()
            self._waiting.append(waiting)
        try:
            waiting[1].acquire()  # the thread that leaves the block releases it
        except BaseException:  # Ctrl-C in the main thread
            self._stop_waiting(waiting)
            raise

    def __exit__(self, *exception: object) -> None:
        with self._guard:
            if not self._waiting:
                self._free += 1
                return
            following = min(self._waiting, key=lambda waiting: self._turns.of(waiting[0]))
            self._waiting.remove(following)
            self._turns.take(following[0])
            following[1].release()

    def _stop_waiting(self, waiting: tuple[str, Lock]) -> None:
        with self._guard:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                return
        self.__exit__()  # the place was passed on to this thread already


@contextmanager
def working_for(client: str) -> Iterator[None]:
    """In the block, this thread works for `client`."""
    _THREAD.client = client
    try:
        yield
    finally:
        del _THREAD.client
