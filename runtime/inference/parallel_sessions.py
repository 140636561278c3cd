"""Sessions of one model for pictures that are classified at the same time.

One picture is fastest with all cores. Several are faster with a core each: the threads of an engine wait for
the slowest of them at each layer.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from runtime.common.errors import UserError
from runtime.inference.engines import InferenceSession
from runtime.inference.fair_semaphore import FairSemaphore

# Each session holds the model's weights once more.
MAX_PARALLEL_MODEL_BYTES = 8_000_000
RETRY_SECONDS = 10.0  # after a session could not be loaded, which takes time and memory too


class ParallelSessions:
    """Gives each thread a session that no other thread uses. Clients take turns (fair_semaphore.py).

    At most `count` pictures run at a time. `load` returns a session of one thread, when it is needed.
    """

    def __init__(self, load: Callable[[], InferenceSession], count: int) -> None:
        self._load = load
        self._semaphore = FairSemaphore(count)
        self._guard = Lock()  # of the attributes below
        self._in_use = 0
        self._idle: list[InferenceSession] = []  # of one thread
        self._retry_at = 0.0  # time.monotonic() seconds before which no session is loaded
        self._all_cores_lock = Lock()  # interpreters are not thread-safe

    @contextmanager
    def take(self, all_cores: InferenceSession) -> Iterator[InferenceSession]:
        """Yields `all_cores` if no other picture is being classified, else a session of one thread."""
        with self._semaphore, self._counted() as others:
            single = self._single() if others else None
            if single is None:
                with self._all_cores_lock:
                    yield all_cores
                return
            try:
                yield single
            finally:
                with self._guard:
                    self._idle.append(single)

    @contextmanager
    def _counted(self) -> Iterator[int]:
        """The number of pictures that other threads classify now."""
        with self._guard:
            others = self._in_use
            self._in_use += 1
        try:
            yield others
        finally:
            with self._guard:
                self._in_use -= 1

    def _single(self) -> InferenceSession | None:
        """Returns an idle or a new session of one thread; None if it cannot be loaded."""
        with self._guard:
            if self._idle:
                return self._idle.pop()
            if time.monotonic() < self._retry_at:
                return None
        try:
            return self._load()
        except (UserError, MemoryError):
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return None
