"""Which session a picture gets, alone and beside others, in the real engines."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event, Thread

import numpy as np
import pytest

from runtime.inference import classifier as classifier_module
from runtime.inference.classifier import Classifier
from runtime.inference.engines import InferenceSession
from runtime.inference.parallel_sessions import ParallelSessions
from tests.helpers import PATIENCE, RELEASED, wait_for

Held = tuple[list[InferenceSession], Callable[[], None]]


def hold(sessions: ParallelSessions, fastest: InferenceSession) -> Held:
    """A thread that keeps a session until the function is called."""
    taken: list[InferenceSession] = []
    done = Event()

    def work() -> None:
        with sessions.take(fastest) as session:
            taken.append(session)
            done.wait(PATIENCE)

    thread = Thread(target=work, daemon=True)
    thread.start()

    def release() -> None:
        done.set()
        thread.join(PATIENCE)

    return taken, release


def test_a_picture_alone_gets_all_cores_and_the_next_one_a_session_of_one_thread(colours: Path) -> None:
    classifier = Classifier(colours)
    fastest, sessions = classifier.session, ParallelSessions(classifier._load_single, 2)
    first, release_first = hold(sessions, fastest)
    wait_for(lambda: bool(first))
    second, release_second = hold(sessions, fastest)
    wait_for(lambda: bool(second))
    assert first == [fastest] and second != [fastest]
    third, release_third = hold(sessions, fastest)
    wait_for(lambda: len(sessions._semaphore._waiting) == 1)  # there are two places
    assert not third
    release_first()
    wait_for(lambda: bool(third))
    assert third != second and third != [fastest]  # the second picture is still there
    release_second()
    release_third()
    with sessions.take(fastest) as session:
        assert session is fastest
    assert sorted(map(id, sessions._idle)) == sorted(map(id, second + third))


@pytest.mark.parametrize("engine", ["litert", "onnx", "openvino"])
def test_pictures_of_several_threads_get_the_answers_of_one(engine: str) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (12, 192, 192, 3), np.uint8)
    one, parallel = (Classifier(RELEASED, engine=engine, threads=3, parallel=each) for each in (False, True))
    together = Barrier(3)

    def infer(picture: np.ndarray) -> np.ndarray:
        together.wait(PATIENCE)
        return parallel.infer(picture).probabilities

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(infer, pictures))
    assert parallel._sessions._idle
    for picture, answer in zip(pictures, answers, strict=True):
        np.testing.assert_allclose(answer, one.infer(picture).probabilities, atol=1e-6)


def test_without_memory_for_another_session_pictures_wait_for_the_first(colours: Path) -> None:
    classifier, attempts = Classifier(colours), list[int]()

    def fail() -> InferenceSession:
        attempts.append(1)
        raise MemoryError

    sessions = ParallelSessions(fail, 2)
    first, release_first = hold(sessions, classifier.session)
    wait_for(lambda: bool(first))
    second, release_second = hold(sessions, classifier.session)
    wait_for(lambda: bool(attempts))
    assert not second
    release_first()
    wait_for(lambda: bool(second))
    third, release_third = hold(sessions, classifier.session)
    wait_for(lambda: sessions._in_use == 2)
    release_second()
    wait_for(lambda: bool(third))
    assert second == third == [classifier.session] and len(attempts) == 1  # not again at once
    release_third()


def test_an_error_in_the_block_gives_the_session_back(colours: Path) -> None:
    classifier = Classifier(colours)
    sessions = ParallelSessions(classifier._load_single, 2)
    _, release = hold(sessions, classifier.session)
    wait_for(lambda: sessions._in_use == 1)
    with pytest.raises(ZeroDivisionError), sessions.take(classifier.session):
        raise ZeroDivisionError
    assert len(sessions._idle) == 1 and sessions._in_use == 1
    release()


@pytest.mark.parametrize(("limit", "places"), [(8_000_000, 3), (1000, 1)])
def test_a_large_model_has_one_session(
    colours: Path, monkeypatch: pytest.MonkeyPatch, limit: int, places: int
) -> None:
    monkeypatch.setattr(classifier_module, "MAX_PARALLEL_MODEL_BYTES", limit)
    assert Classifier(colours, threads=3, parallel=True)._sessions._semaphore._free == places
    assert Classifier(colours, threads=3)._sessions._semaphore._free == 1
