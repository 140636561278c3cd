"""FairExecutor: turns of clients, and threads that one client leaves to others."""

from __future__ import annotations

import time
from threading import Event, Thread

import pytest

from runtime.inference.fair_semaphore import FairSemaphore
from runtime.server.fair_executor import ACTIVE_TURNS, FairExecutor
from tests.helpers import PATIENCE, wait_for


def test_a_client_with_slow_jobs_leaves_threads_to_others() -> None:
    executor, may_end = FairExecutor(3, 2, "test"), Event()
    slow = [executor.submit("slow", may_end.wait) for _ in range(6)]
    wait_for(lambda: sum(job.running() for job in slow) == 2)
    assert executor.submit("other", lambda: 1).result(timeout=PATIENCE) == 1
    assert sum(job.running() for job in slow) == 2
    may_end.set()
    assert all(job.result(timeout=PATIENCE) for job in slow)
    assert executor.submit("slow", lambda: 2).result(timeout=PATIENCE) == 2
    assert not +executor._running and not executor._lines
    executor.shutdown()


def test_jobs_run_while_the_system_gives_no_further_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = FairExecutor(3, 2, "test")

    def start(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Thread, "start", start)
    jobs = [executor.submit(client, lambda: 1) for client in ("a", "b") for _ in range(5)]
    assert [job.result(timeout=PATIENCE) for job in jobs] == [1] * 10
    assert not executor._lines
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit("a", lambda: 1)


def test_a_client_runs_one_job_at_a_time_while_another_client_is_active() -> None:
    executor, may_end = FairExecutor(4, 2, "test"), Event()
    assert executor.submit("one by one", lambda: 1).result(timeout=PATIENCE) == 1
    running: list[int] = []

    def count() -> None:
        running.append(sum(job.running() for job in flood))
        time.sleep(0.01)

    flood = [executor.submit("flood", may_end.wait)]
    wait_for(flood[0].running)
    flood += [executor.submit("flood", count) for _ in range(3 * ACTIVE_TURNS)]
    assert executor.submit("one by one", lambda: 2).result(timeout=PATIENCE) == 2
    assert sum(job.running() for job in flood) == 1
    may_end.set()
    assert all(job.exception(timeout=PATIENCE) is None for job in flood)
    assert set(running[: ACTIVE_TURNS // 2]) == {1}
    assert max(running[-ACTIVE_TURNS:]) == 2  # the other client has left
    executor.shutdown()


def test_jobs_that_fail_or_are_cancelled_free_their_place() -> None:
    executor, may_end = FairExecutor(1, 1, "test"), Event()
    first = executor.submit("a", may_end.wait)
    wait_for(first.running)
    cancelled, failing = executor.submit("a", lambda: 1), executor.submit("a", lambda: 1 // 0)
    assert cancelled.cancel()
    may_end.set()
    assert isinstance(failing.exception(timeout=PATIENCE), ZeroDivisionError)
    assert executor.submit("a", lambda: 3).result(timeout=PATIENCE) == 3
    executor.shutdown()


def test_jobs_work_for_their_client() -> None:
    """Four jobs of a flood wait for the engine, and at most one of them uses it before another client's."""
    executor, lock, order = FairExecutor(8, 4, "test"), FairSemaphore(), list[str]()

    def use_engine(client: str) -> None:
        with lock:
            order.append(client)

    with lock:
        flood = [executor.submit("flood", lambda: use_engine("flood")) for _ in range(20)]
        wait_for(lambda: len(lock._waiting) == 4)
        other = executor.submit("other", lambda: use_engine("other"))
        wait_for(lambda: len(lock._waiting) == 5)
    assert all(job.exception(timeout=PATIENCE) is None for job in (*flood, other))
    assert order.index("other") <= 1
    executor.shutdown()
