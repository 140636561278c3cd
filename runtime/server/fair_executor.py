"""Threads whose waiting jobs take turns by client, so that a client with many jobs delays only itself.

There is one line of jobs per client. The next job is that of the client whose last turn is longest ago, and a
job works for its client: at the engine too, the clients take turns.
"""

from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import TypeVar

from runtime.inference.fair_semaphore import LastTurns, working_for

Result = TypeVar("Result")

# A client that had one of the last turns is active, also between two of its jobs: most clients send a photo
# when they have the answer to the last one.
ACTIVE_TURNS = 20


class FairExecutor:
    """Runs jobs in `threads` threads, at most `per_client` of a client at a time.

    While several clients are active, they divide `per_client` among them, and each may run one job at least:
    the jobs share the processor and the engine, so each running job of one client delays the others.
    """

    def __init__(self, threads: int, per_client: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        # One thread must exist: with it, jobs run even if the system gives no further thread.
        self._pool.submit(int)
        self._is_shut_down = False
        self._per_client = per_client
        self._lock = Lock()
        self._running: Counter[str] = Counter()  # jobs by client
        self._skipped = 0  # turns that found no client that may run another job
        self._lines: dict[str, deque[Callable[[], None]]] = {}  # of the clients that wait
        self._turns = LastTurns()

    def submit(self, client: str, work: Callable[[], Result]) -> "Future[Result]":
        """The future result of a job. Cancelling the future before the job starts skips the job."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                with working_for(client):
                    future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        with self._lock:
            self._lines.setdefault(client, deque()).append(run)
        # The thread that becomes free chooses the job, so no thread waits for the event loop between jobs.
        try:
            self._pool.submit(self._run_next)
        except RuntimeError:
            if self._is_shut_down:
                raise
            # The system gives no further thread, for want of memory: the pool has the job, and runs it later.
        return future

    def shutdown(self) -> None:
        """Starts no further job."""
        self._is_shut_down = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run_next(self) -> None:
        with self._lock:
            limit = self._limit()
            clients = [waiting for waiting in self._lines if self._running[waiting] < limit]
            if not clients:
                self._skipped += 1
                return
            client = min(clients, key=self._turns.of)
            run = self._lines[client].popleft()
            if not self._lines[client]:
                del self._lines[client]
            self._running[client] += 1
            self._turns.take(client)
        run()
        with self._lock:
            self._running[client] -= 1
            self._running = +self._running  # without the clients that run no job
            resumed = min(self._skipped, self._per_client)  # more than one: the limit may have risen
            self._skipped -= resumed
        for _ in range(resumed):
            with suppress(RuntimeError):  # after shutdown()
                self._pool.submit(self._run_next)

    def _limit(self) -> int:
        """The number of jobs that a client may run now."""
        active = {*self._lines, *self._running, *self._turns.recent(ACTIVE_TURNS)}
        return max(1, self._per_client // len(active))
