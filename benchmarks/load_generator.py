"""An HTTP load generator with 32 clients, and a sink that answers it; each runs in a separate process."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

CLIENTS = 32

ExpectedAnswer = tuple[str, float]  # label and probability


@dataclass
class LoadResult:
    """The answers to one run of the load generator."""

    answered: int = 0
    wrong: int = 0  # a label or probability that differs from the expected one
    retried: int = 0  # 503 answers, each followed by another try
    failed: int = 0  # other statuses and broken connections
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of the generator's process
    latencies: list[float] = field(default_factory=list)  # seconds from a photo's first try to its answer

    @property
    def photos_per_second(self) -> float:
        return self.answered / self.seconds


@dataclass(frozen=True)
class LoadGenerator:
    """The parent's handle of the generator's process."""

    pipe: Connection

    def start(self, port: int, seconds: float) -> None:
        self.pipe.send((port, seconds))

    def result(self) -> LoadResult:
        """Waits until the last photo is answered."""
        result: LoadResult = self.pipe.recv()
        return result

    def run(self, port: int, seconds: float) -> LoadResult:
        self.start(port, seconds)
        return self.result()


@contextmanager
def start_load_generator(photos: list[bytes], expected: list[ExpectedAnswer]) -> Iterator[LoadGenerator]:
    with _process(_generate, photos, expected) as (_, pipe):
        yield LoadGenerator(pipe)


@contextmanager
def start_sink() -> Iterator[tuple[int, int, Callable[[float], None]]]:
    """A server that reads each request and sends a constant answer.

    Yields its process id, its port, and a function that sets its answers per second.
    """
    with _process(_run_sink) as (process_id, pipe):
        yield process_id, pipe.recv(), pipe.send


@contextmanager
def _process(target: Callable[..., None], *arguments: object) -> Iterator[tuple[int, Connection]]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    try:
        yield process.pid or 0, ours
    finally:
        process.terminate()


# --- the load generator's process ---


def _generate(pipe: Connection, photos: list[bytes], expected: list[ExpectedAnswer]) -> None:
    while True:
        port, seconds = pipe.recv()
        pipe.send(asyncio.run(_run_clients(port, photos, expected, seconds)))


async def _run_clients(
    port: int, photos: list[bytes], expected: list[ExpectedAnswer], seconds: float
) -> LoadResult:
    result, started, cpu = LoadResult(), time.perf_counter(), time.process_time()
    jobs = [(_request(port, photo), answer) for photo, answer in zip(photos, expected, strict=True)]
    deadline = started + seconds
    await asyncio.gather(*(_run_client(number, port, jobs, deadline, result) for number in range(CLIENTS)))
    result.seconds = time.perf_counter() - started
    result.cpu_seconds = time.process_time() - cpu
    return result


def _request(port: int, photo: bytes) -> bytes:
    head = f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/jpeg\r\n"
    return f"{head}Content-Length: {len(photo)}\r\n\r\n".encode() + photo


async def _run_client(
    number: int, port: int, jobs: list[tuple[bytes, ExpectedAnswer]], deadline: float, result: LoadResult
) -> None:
    """Sends one photo after the other until the deadline, and waits for the last answer."""
    connection: ClientConnection | None = None
    turn = number
    while time.perf_counter() < deadline:
        request, expected = jobs[turn % len(jobs)]
        turn += CLIENTS
        started = time.perf_counter()
        while True:
            if connection is None or connection.lost:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(ClientConnection, "127.0.0.1", port)
            status, headers, body = await connection.send(request)
            if status != 503:
                break
            result.retried += 1
            retry_after = re.search(rb"retry-after: *(\d+)", headers, re.IGNORECASE)
            assert retry_after, "503 without Retry-After"
            await asyncio.sleep(int(retry_after[1]))
        if status != 200:
            result.failed += 1
            continue
        answer = json.loads(body)
        result.answered += 1
        result.wrong += (answer["label"], answer["probability"]) != expected
        result.latencies.append(time.perf_counter() - started)


class ClientConnection(asyncio.Protocol):
    """Sends one request at a time, with as little processor time as possible."""

    lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._answer: asyncio.Future[tuple[int, bytes, bytes]] | None = None

    async def send(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Status, head and body of the answer; status 0 if the connection is lost."""
        self._received = b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or self._answer is None or self._answer.done():
            return
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if length and len(body) >= int(length[1]):
            self.lost = b"connection: close" in head.lower()
            self._answer.set_result((int(head[9:12]), head, body))

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((0, b"", b""))


# --- the sink's process ---


def _run_sink(pipe: Connection) -> None:
    asyncio.run(_answer_all(pipe))


async def _answer_all(pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    text = json.dumps({"label": "", "probability": 0.0}).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)
    unanswered: deque[Any] = deque()  # transports

    class Sink(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.bytes_left = transport, 0

        def data_received(self, data: bytes) -> None:
            if self.bytes_left == 0:
                head, _, body = data.partition(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                assert length
                self.bytes_left = int(length[1]) - len(body)
            else:
                self.bytes_left -= len(data)
            if self.bytes_left == 0:
                unanswered.append(self.transport)

    server = await loop.create_server(Sink, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    rate, allowed, last = 1.0, 0.0, loop.time()
    while True:
        await asyncio.sleep(0.003)
        if pipe.poll():
            rate = pipe.recv()
        now = loop.time()
        allowed, last = min(allowed + rate * (now - last), CLIENTS), now
        while allowed >= 1 and unanswered:
            unanswered.popleft().write(answer)
            allowed -= 1
