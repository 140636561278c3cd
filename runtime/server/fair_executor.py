"""Threads whose waiting jobs take turns by client, so that a client with many jobs delays only itself.

Round-robin over one line per client, as fair queueing does for network flows (Nagle, RFC 970, 1985).
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

Result = TypeVar("Result")


class FairExecutor:
    """Runs jobs in `threads` threads."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._lock = Lock()
        # One line of jobs per client that waits; the client whose turn is next comes first.
        self._lines: OrderedDict[str, deque[Callable[[], None]]] = OrderedDict()

    def submit(self, client: str, work: Callable[[], Result]) -> "Future[Result]":
        """The future result of a job. Cancelling the future before the job starts skips the job."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        with self._lock:
            self._lines.setdefault(client, deque()).append(run)
        # The thread that becomes free chooses the job, so no thread waits for the event loop between jobs.
        self._pool.submit(self._run_next)
        return future

    def shutdown(self) -> None:
        """Starts no further job."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run_next(self) -> None:
        with self._lock:
            client, line = self._lines.popitem(last=False)
            run = line.popleft()
            if line:
                self._lines[client] = line  # at the end: the other clients come first
        run()
