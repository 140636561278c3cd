"""FairSemaphore: the order in which threads of several clients get it, and a wait that is interrupted."""

from __future__ import annotations

from threading import Event, Lock, Thread

import pytest

from runtime.inference import fair_semaphore
from runtime.inference.fair_semaphore import FairSemaphore, LastTurns, working_for
from tests.helpers import PATIENCE, wait_for


def start_waiting(semaphore: FairSemaphore, client: str, order: list[str]) -> Thread:
    """A thread that waits for the semaphore when this function returns."""

    def wait() -> None:
        with working_for(client), semaphore:
            order.append(client)

    before = len(semaphore._waiting)
    thread = Thread(target=wait, daemon=True)
    thread.start()
    wait_for(lambda: len(semaphore._waiting) == before + 1)
    return thread


def test_a_client_with_many_threads_is_only_once_ahead_of_another() -> None:
    semaphore, order = FairSemaphore(), list[str]()
    with working_for("flood"), semaphore:
        threads = [
            start_waiting(semaphore, client, order) for client in ("flood", "flood", "flood", "a", "b", "a")
        ]
    for thread in threads:
        thread.join(PATIENCE)
    assert order == ["a", "b", "flood", "a", "flood", "flood"]
    with semaphore:  # free again, also for a thread that works for no client
        assert not semaphore._waiting


@pytest.mark.parametrize("places", [1, 2])
def test_as_many_threads_as_places_are_in_the_block(places: int) -> None:
    semaphore, inside, most, guard = FairSemaphore(places), 0, 0, Lock()

    def enter(client: str) -> None:
        nonlocal inside, most
        for _ in range(200):
            with working_for(client), semaphore:
                with guard:
                    inside += 1
                    most = max(most, inside)
                Event().wait(0.0001)
                with guard:
                    inside -= 1

    threads = [Thread(target=enter, args=(client,), daemon=True) for client in "aab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert (inside, most) == (0, places) and not semaphore._waiting and semaphore._free == places


@pytest.mark.parametrize("is_passed_on", [False, True])
def test_ctrl_c_while_waiting_leaves_the_place_to_others(
    monkeypatch: pytest.MonkeyPatch, is_passed_on: bool
) -> None:
    semaphore = FairSemaphore()

    class InterruptedLock:
        """Its second acquire(), which waits, is interrupted: before or after the place is passed on."""

        def __init__(self) -> None:
            self.acquired = 0

        def acquire(self) -> None:
            self.acquired += 1
            if self.acquired == 2:
                if is_passed_on:
                    semaphore.__exit__()
                raise KeyboardInterrupt

        def release(self) -> None:
            pass

    semaphore.__enter__()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fair_semaphore, "Lock", InterruptedLock)
        semaphore.__enter__()
    if not is_passed_on:
        semaphore.__exit__()
    assert not semaphore._waiting and semaphore._free == 1


def test_a_bounded_number_of_clients_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_semaphore, "TURNS_KEPT", 3)
    last = LastTurns()
    for client in "abcada":
        last.take(client)
    assert [last.of(client) for client in "abcd"] == [6, 0, 3, 5]
    assert list(last.recent(2)) == ["a", "d"]


def test_a_thread_works_for_its_client_within_the_block_only() -> None:
    seen = []
    with working_for("a"):
        seen.append(fair_semaphore._THREAD.client)
        thread = Thread(target=lambda: seen.append(getattr(fair_semaphore._THREAD, "client", "")))
        thread.start()
        thread.join()
    assert seen == ["a", ""] and not hasattr(fair_semaphore._THREAD, "client")
