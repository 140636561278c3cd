"""The order and the places of photos, with an engine that waits; the queue's memory, in its own process."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from PIL import Image

from runtime.common.errors import PictureError
from runtime.inference.prediction import Prediction
from runtime.server import inference_queue, request_body
from runtime.server.errors import RequestRejected
from runtime.server.fair_executor import FairExecutor
from runtime.server.inference_queue import InferenceQueue, RequestTiming
from tests.helpers import PATIENCE
from tests.runtime.camera.helpers import Clock

SIDE = 2500  # pixels
ESTIMATED_BYTES = 16 * SIDE**2  # of decoding one RGBA PNG

# Decodes the picture 6 times in the queue's 8 threads; prints by how many kB the peak grew.
CHILD = """
import re, sys
from runtime.preprocess import decode, limits, memory, picture
from runtime.server import inference_queue, malloc
malloc.return_large_blocks_to_system()
peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])
data, total = open(sys.argv[1], 'rb').read(), int(sys.argv[2])
decode.total_memory = limits.total_memory = memory.total_memory = lambda: total
inference_queue.default_threads = lambda: 4
queue, before = inference_queue.InferenceQueue(None), peak()
jobs = [queue._executor.submit(str(number), lambda: picture.read_picture(data)) for number in range(6)]
assert all(job.result().shape for job in jobs)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_pictures_that_are_decoded_at_once_share_the_memory_limit(tmp_path: Path) -> None:
    """Each of four pictures fits into half of the memory; together they must not take more than that."""
    Image.new("RGBA", (SIDE, SIDE)).save(tmp_path / "large", "PNG")

    def growth_kb(memory: int) -> int:
        command = [sys.executable, "-c", CHILD, str(tmp_path / "large"), str(memory)]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert growth_kb(2 * ESTIMATED_BYTES) < ESTIMATED_BYTES / 1000 < growth_kb(20 * ESTIMATED_BYTES)


@dataclass
class WaitingEngine:
    """Stands for the reloader and its classifier: answers photos in the order of `seen` once it may."""

    may_answer: Event = field(default_factory=Event)
    seen: list[str] = field(default_factory=list)

    def current(self) -> Callable[[bytes], Prediction]:
        return self.answer

    def answer(self, data: bytes) -> Prediction:
        assert self.may_answer.wait(PATIENCE)
        if data.startswith(b"damaged"):
            raise PictureError("is damaged")
        self.seen.append(data.decode())
        return Prediction("-", data.decode(), 1.0, None, (), {"decode": 1.0, "infer": 1.0})


def body_of(data: bytes, *, is_complete: bool = True) -> Callable[[], Awaitable[Mapping[str, Any]]]:
    """A request's body in one part. If it is not complete, nothing follows."""
    parts = [{"type": "http.request", "body": data, "more_body": not is_complete}]

    async def receive() -> Mapping[str, Any]:
        if not parts:
            await asyncio.Event().wait()
        return parts.pop()

    return receive


@dataclass
class Clients:
    """Requests to one queue, with one thread."""

    queue: InferenceQueue
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    async def send(self, address: str, data: str, *, is_complete: bool = True) -> None:
        """Starts a request; returns when it waits for its body or its answer, or has ended."""
        body = body_of(data.encode(), is_complete=is_complete)
        self.tasks.append(asyncio.create_task(self.queue.classify("", None, body, address)))
        for _ in range(40):  # more steps than the request has until then
            await asyncio.sleep(0)

    async def results(self) -> list[str]:
        """Per request the answer, or the status of its error."""
        done = await asyncio.gather(*self.tasks, return_exceptions=True)
        return [str(each.status) if isinstance(each, RequestRejected) else each.label for each in done]


def run_clients(
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[Clients, WaitingEngine], Awaitable[None]],
    threads: int = 1,
    **limits: int,
) -> None:
    monkeypatch.setattr(
        inference_queue, "FairExecutor", lambda *_: FairExecutor(threads, threads, "classify")
    )
    engine = WaitingEngine()
    queue = InferenceQueue(engine, **limits)  # type: ignore[arg-type]

    async def with_queue() -> None:
        await run(Clients(queue), engine)
        assert queue.photos == [] and queue.buffered_bytes == queue.in_flight == 0

    asyncio.run(with_queue())
    queue.close()


def test_clients_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(clients: Clients, engine: WaitingEngine) -> None:
        for data in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
            await clients.send(data[0], data)
        engine.may_answer.set()
        await clients.results()
        assert engine.seen == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]  # a had its turn before the others

    run_clients(monkeypatch, run)


def test_a_full_queue_rejects_the_newest_photo_of_the_client_with_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run(clients: Clients, engine: WaitingEngine) -> None:
        for data in ("a1", "a2", "a3", "a4", "a5", "b1", "b2", "b3"):
            await clients.send(data[0], data)
        assert clients.queue.in_flight == 4
        engine.may_answer.set()
        # a5: the queue is full of a's photos. b1 and b2 take the places of a4 and a3, then both have two.
        assert await clients.results() == ["a1", "a2", "503", "503", "503", "b1", "b2", "503"]

    run_clients(monkeypatch, run, capacity=4)


def test_a_full_queue_does_not_exchange_photos_of_clients_that_would_only_change_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run(clients: Clients, engine: WaitingEngine) -> None:
        for data in ("a1", "a2", "a3", "b1", "b2"):
            await clients.send(data[0], data)
        engine.may_answer.set()
        # b1 takes the place of a3. With b2, client b would have two photos and client a one.
        assert await clients.results() == ["a1", "a2", "503", "b1", "503"]

    run_clients(monkeypatch, run, capacity=3)


def test_a_full_queue_rejects_a_photo_before_its_body_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(clients: Clients, engine: WaitingEngine) -> None:
        await clients.send("a", "a1")
        await clients.send("a", "a2", is_complete=False)
        with pytest.raises(RequestRejected, match=r"retry in \d+ s") as raised:
            await asyncio.wait_for(clients.tasks[1], PATIENCE)
        assert raised.value.status == 503 and raised.value.retry_after and raised.value.retry_after >= 1
        engine.may_answer.set()
        assert await clients.results() == ["a1", "503"]

    run_clients(monkeypatch, run, capacity=1)


@pytest.mark.parametrize(("seconds", "retry_after"), [(0.1, 1), (3.0, 9), (100.0, 30)])
def test_retry_after_is_the_time_of_the_photos_in_the_queue(
    seconds: float, retry_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(clients: Clients, engine: WaitingEngine) -> None:
        for data in ("a1", "b1", "c1"):
            await clients.send(data[0], data)
        clients.queue.timings.append(RequestTiming(total=2 * seconds, decode=seconds, infer=0.0))
        clients.queue.timings.append(RequestTiming(total=2 * seconds, decode=0.0, infer=seconds))
        assert clients.queue.full_error().retry_after == retry_after
        engine.may_answer.set()
        await clients.results()

    run_clients(monkeypatch, run)


def test_memory_is_taken_from_the_client_that_holds_over_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bodies of 10 bytes fill the memory. Their client sends fast enough, so none is stalled."""

    async def run(clients: Clients, engine: WaitingEngine) -> None:
        for data in ("a1", "a2"):
            await clients.send("a", data * 5)
        await clients.send("a", "a3")  # its own client has all the memory
        await clients.send("b", "b1" * 2)
        engine.may_answer.set()
        assert await clients.results() == ["a1" * 5, "503", "503", "b1" * 2]

    run_clients(monkeypatch, run, max_upload_bytes=10)


def test_a_client_that_holds_little_has_room_beside_bodies_in_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bodies in work fill the memory, and cannot give it to others."""

    async def run(clients: Clients, engine: WaitingEngine) -> None:
        for data in ("a1", "a2"):
            await clients.send("a", data * 20)
        while not all(photo.is_started() for photo in clients.queue.photos):
            await asyncio.sleep(0.01)
        await clients.send("b", "b1" * 5)
        await clients.send("b", "b2")  # more than a quarter of a body
        engine.may_answer.set()
        assert await clients.results() == ["a1" * 20, "a2" * 20, "b1" * 5, "503"]

    run_clients(monkeypatch, run, threads=2, max_upload_bytes=40)


def test_memory_is_taken_from_a_stalled_body(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(request_body, "time", clock)
    monkeypatch.setattr(request_body, "BODY_TIMEOUT", 1.0)

    async def run(clients: Clients, engine: WaitingEngine) -> None:
        engine.may_answer.set()
        for data in ("a1", "a2"):
            await clients.send("a", data * 5, is_complete=False)
        await clients.send("a", "a3")  # none of both is stalled yet
        clock.sleep(inference_queue.SLOW_AFTER + 0.1)
        await clients.send("a", "a4")
        await asyncio.wait_for(clients.tasks[3], PATIENCE)
        assert clients.queue.buffered_bytes == 10
        assert await clients.results() == ["503", "408", "503", "a4"]

    run_clients(monkeypatch, run, max_upload_bytes=10)


def test_a_rejected_body_is_freed_before_its_client_has_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the client sends the rest, up to 20 s, the exception of the answer refers to the body."""

    async def endless() -> Mapping[str, Any]:
        return {"type": "http.request", "body": bytes(1_000_000), "more_body": True}

    async def run(clients: Clients, engine: WaitingEngine) -> None:
        tracemalloc.start()
        try:
            with pytest.raises(RequestRejected) as raised:
                await clients.queue.classify("", None, endless, "a")
            assert raised.value.status == 413
            assert tracemalloc.get_traced_memory()[0] < 3_000_000
        finally:
            tracemalloc.stop()

    run_clients(monkeypatch, run, max_upload_bytes=20_000_000)


def test_a_damaged_picture_is_freed_before_its_client_has_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without the garbage collector, which may run late."""

    async def run(clients: Clients, engine: WaitingEngine) -> None:
        engine.may_answer.set()
        gc.disable()
        tracemalloc.start()
        try:
            with pytest.raises(RequestRejected) as raised:
                await clients.queue.classify("", None, body_of(b"damaged" * 1_000_000), "a")
            assert raised.value.status == 400
            assert tracemalloc.get_traced_memory()[0] < 1_000_000
        finally:
            tracemalloc.stop()
            gc.enable()

    run_clients(monkeypatch, run)


def test_a_fast_start_does_not_pay_for_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "BODY_TIMEOUT", 0.3)

    async def run(clients: Clients, engine: WaitingEngine) -> None:
        await clients.send("a", "a" * 30_000_000, is_complete=False)
        assert await asyncio.wait_for(clients.results(), PATIENCE) == ["408"]

    run_clients(monkeypatch, run)
