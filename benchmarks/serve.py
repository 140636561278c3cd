"""Measure the service under load: its goodput beside the engine's own, its latency, its memory.

    python -m benchmarks.serve [--seconds 60]

32 clients in a process of their own, each sending its next photo when the last one is answered, and waiting
as long as Retry-After says when there is no place. Every answer is compared with the one that the classifier
gives in this process. In turns with that, so that both meet the same weather, the engine alone: it decodes
and infers the same photos here, in as many threads as the service, without HTTP, while the load generator
runs as fast as it did against the service, but against a sink that reads each request and answers it with a
text that is always the same.

The sink needs processor time too, which would make the engine alone look slower than it is: its figure is
scaled up by the time that the sink took, as if the engine had had that as well.

Photos: small ones of VGG_EDGE_PHOTOS/test, else drawn. Everything stays on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import io
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from runtime.inference.classifier import Classifier
from runtime.inference.engines import default_threads
from runtime.preprocess.picture import read_picture

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models/flowers"
CLIENTS = 32
PHOTOS = 200
TURNS = 30
BAR = 0.9

Expected = tuple[str, float]  # the label and its probability


@dataclass
class Load:
    """What a run of the load generator came to."""

    answered: int = 0
    wrong: int = 0
    refused: int = 0  # 503s; each was followed by another try
    failed: int = 0  # other answers, and broken connections
    seconds: float = 0.0
    cpu: float = 0.0  # the generator's own, seconds
    latencies: list[float] = field(default_factory=list)  # seconds from a photo's first try to its answer


@dataclass(frozen=True)
class Row:
    what: str
    value: float
    unit: str
    bar: str = ""
    holds: bool | None = None
    detail: str = ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load on the service")
    arguments = parser.parse_args(argv)
    photos = small_photos()
    classifier = Classifier(MODEL)
    expected = [(answer.label, answer.probability) for answer in map(classifier, photos)]
    with generating(photos, expected) as generator:
        rows = [
            *beside_the_engine(generator, classifier, photos, arguments.seconds),
            *with_few_places(generator, arguments.seconds),
        ]
    write(rows, f"{classifier.model.path.name} on {classifier.session.engine}, {classifier.threads} threads")


def beside_the_engine(
    generator: Generator, classifier: Classifier, photos: list[bytes], seconds: float
) -> Iterator[Row]:
    """The service and the engine alone, in turns so short that other work on the machine meets both."""
    served, alone, infers, memory, sinks = [], [], [], [], []
    service_cpu, alone_cpu = [], []  # seconds of processor time a photo
    size = classifier.model.contract.input_size
    pixels = [read_picture(photo, size) for photo in photos]
    turn = seconds / TURNS
    with serving() as (server, port), sink() as (sinking, sink_port, set_rate):
        generator.load(port, 3)  # warms both up
        for _ in range(TURNS):
            before = cpu_of(server.pid)
            run = generator.load(port, turn)
            service_cpu.append((cpu_of(server.pid) - before) / run.answered)
            served.append(run)
            memory.append(resident(server.pid))
            set_rate(run.answered / run.seconds)
            before, started = cpu_of(sinking), time.process_time()
            generator.start(sink_port, turn)
            alone.append(classify_for(classifier, photos, turn))
            alone_cpu.append((time.process_time() - started) / (alone[-1] * turn))
            generator.result()
            sinks.append((cpu_of(sinking) - before) / turn)
            generator.start(sink_port, turn)
            infers.append(infer_for(classifier, pixels, turn))
            generator.result()
    cores = default_threads()
    scale = cores / (cores - statistics.median(sinks))
    goodput = [run.answered / run.seconds for run in served]
    ratios = sorted(ours / (theirs * scale) for ours, theirs in zip(goodput, alone, strict=True))
    ratio = statistics.median(ratios)
    bare = statistics.median(ours / (theirs * scale) for ours, theirs in zip(goodput, infers, strict=True))
    total = sum(run.answered for run in served)
    wrong, failed = (sum(getattr(run, name) for run in served) for name in ("wrong", "failed"))
    latencies = sorted(latency for run in served for latency in run.latencies)
    busy = sum(run.cpu for run in served) / sum(run.seconds for run in served)
    yield Row("photos answered", total, "", "all", failed == 0, f"{CLIENTS} clients, {seconds:.0f} s")
    yield Row("wrong answers", wrong, "", "0", wrong == 0, "label and probability, against the classifier's")
    yield Row(
        "goodput", statistics.median(goodput), "photos/s", "", None, f"the generator takes {busy:.2f} cores"
    )
    yield Row(
        "engine alone, with decoding",
        statistics.median(alone) * scale,
        "photos/s",
        "",
        None,
        f"{statistics.median(alone):.0f} measured, the sink takes {statistics.median(sinks):.2f} cores",
    )
    spread = f"{TURNS} turns, half of them from {ratios[TURNS // 4]:.2f} to {ratios[3 * TURNS // 4]:.2f}"
    yield Row("goodput / engine alone, with decoding", ratio, "", f"≥ {BAR}", ratio >= BAR, spread)
    yield Row("goodput / engine alone, photos decoded before", bare, "", "", None, "but photos come encoded")
    for name, cpu in (("the service", service_cpu), ("the engine alone, with decoding", alone_cpu)):
        yield Row(f"processor time a photo, {name}", 1000 * statistics.median(cpu), "ms")
    for share in (50, 95, 99):
        yield Row(f"latency p{share}", 1000 * latencies[int(share / 100 * len(latencies))], "ms")
    growth = memory[-1] - memory[0]
    yield Row(
        "memory growth", growth, "MB", "≤ 5", growth <= 5, f"{memory[-1]:.0f} MB after {total:,} photos"
    )


def with_few_places(generator: Generator, seconds: float) -> Iterator[Row]:
    """The same load where three of four clients are told to come again."""
    with serving("--queue", str(CLIENTS // 4)) as (server, port):
        generator.load(port, 3)
        before = resident(server.pid)
        run = generator.load(port, seconds)
        growth = resident(server.pid) - before
    name = f"{CLIENTS // 4} places: "
    latencies = sorted(run.latencies)
    yield Row(
        f"{name}photos answered",
        run.answered,
        "",
        "all",
        run.failed == 0,
        f"{run.refused:,} times 503 before",
    )
    yield Row(f"{name}wrong answers", run.wrong, "", "0", run.wrong == 0)
    yield Row(f"{name}goodput", run.answered / run.seconds, "photos/s")
    yield Row(
        f"{name}latency p99", 1000 * latencies[int(0.99 * len(latencies))], "ms", "", None, "waiting included"
    )
    yield Row(f"{name}memory growth", growth, "MB", "≤ 5", growth <= 5)


def small_photos() -> list[bytes]:
    root = os.environ.get("VGG_EDGE_PHOTOS")
    if root:
        return [path.read_bytes() for path in sorted(Path(root).glob("test/*/*.jpg"))[:: 500 // PHOTOS]]
    from train.data.synthetic import FLOWERS, draw_flower

    made = []
    for number in range(PHOTOS):
        out = io.BytesIO()
        draw_flower(sorted(FLOWERS)[number % len(FLOWERS)], number).save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The service on a free port."""
    command = [sys.executable, "-m", "runtime.serve", "--port", "0", "--model", str(MODEL), *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            found = re.search(r":(\d+)", process.stdout.readline())
            assert found, "the service did not start"
            yield process, int(found[1])
        finally:
            process.terminate()


# --- the load generator, a process of its own ---


@dataclass(frozen=True)
class Generator:
    pipe: Connection

    def start(self, port: int, seconds: float) -> None:
        self.pipe.send((port, seconds))

    def result(self) -> Load:
        """Waits until the last photo is answered."""
        result: Load = self.pipe.recv()
        return result

    def load(self, port: int, seconds: float) -> Load:
        self.start(port, seconds)
        return self.result()


@contextmanager
def generating(photos: list[bytes], expected: list[Expected]) -> Iterator[Generator]:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_generate, args=(there, photos, expected), daemon=True)
    process.start()
    try:
        yield Generator(here)
    finally:
        process.terminate()


def _generate(pipe: Connection, photos: list[bytes], expected: list[Expected]) -> None:
    while True:
        port, seconds = pipe.recv()
        pipe.send(asyncio.run(_run_clients(port, photos, expected, seconds)))


async def _run_clients(port: int, photos: list[bytes], expected: list[Expected], seconds: float) -> Load:
    result, started, cpu = Load(), time.perf_counter(), time.process_time()
    jobs = [(_request(port, photo), answer) for photo, answer in zip(photos, expected, strict=True)]
    until = started + seconds
    await asyncio.gather(*(_client(number, port, jobs, until, result) for number in range(CLIENTS)))
    result.seconds = time.perf_counter() - started
    result.cpu = time.process_time() - cpu
    return result


def _request(port: int, photo: bytes) -> bytes:
    head = f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/jpeg\r\n"
    return f"{head}Content-Length: {len(photo)}\r\n\r\n".encode() + photo


async def _client(
    number: int, port: int, jobs: list[tuple[bytes, Expected]], until: float, result: Load
) -> None:
    """Sends one photo after the other until it is time; the last one is waited for too."""
    connection: Connected | None = None
    turn = number
    while time.perf_counter() < until:
        request, expected = jobs[turn % len(jobs)]
        turn += CLIENTS
        began = time.perf_counter()
        while True:
            if connection is None or connection.lost:
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connected, "127.0.0.1", port
                )
            status, headers, body = await connection.ask(request)
            if status != 503:
                break
            result.refused += 1
            found = re.search(rb"retry-after: *(\d+)", headers, re.IGNORECASE)
            assert found, "503 without Retry-After"
            await asyncio.sleep(int(found[1]))
        if status != 200:
            result.failed += 1
            continue
        answer = json.loads(body)
        result.answered += 1
        result.wrong += (answer["label"], answer["probability"]) != expected
        result.latencies.append(time.perf_counter() - began)


class Connected(asyncio.Protocol):
    """One request at a time, with as little work as can be."""

    lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._answer: asyncio.Future[tuple[int, bytes, bytes]] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        self._got = b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
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


# --- the sink, a process of its own ---


@contextmanager
def sink() -> Iterator[tuple[int, int, Any]]:
    """Its process, its port, and what sets how many requests a second it answers."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_sink, args=(there,), daemon=True)
    process.start()
    port = here.recv()
    try:
        yield process.pid or 0, port, here.send
    finally:
        process.terminate()


def _sink(pipe: Connection) -> None:
    asyncio.run(_answer_all(pipe))


async def _answer_all(pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    text = json.dumps({"label": "", "probability": 0.0}).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)
    waiting: deque[Any] = deque()
    rate = 1.0

    class Sink(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.left = transport, 0

        def data_received(self, data: bytes) -> None:
            if self.left == 0:
                head, _, body = data.partition(b"\r\n\r\n")
                found = re.search(rb"Content-Length: (\d+)", head)
                assert found
                self.left = int(found[1]) - len(body)
            else:
                self.left -= len(data)
            if self.left == 0:
                waiting.append(self.transport)

    server = await loop.create_server(Sink, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    owed, last = 0.0, loop.time()
    while True:
        await asyncio.sleep(0.003)
        if pipe.poll():
            rate = pipe.recv()
        now = loop.time()
        owed, last = min(owed + rate * (now - last), CLIENTS), now
        while owed >= 1 and waiting:
            waiting.popleft().write(answer)
            owed -= 1


# --- the engine alone ---


def classify_for(classifier: Classifier, photos: list[bytes], seconds: float) -> float:
    """Photos a second, decoded and inferred in as many threads as the service's."""
    done = [0] * default_threads()
    started = time.perf_counter()

    def work(thread: int) -> None:
        at = thread
        while time.perf_counter() - started < seconds:
            classifier(photos[at % len(photos)])
            at += len(done)
            done[thread] += 1

    with ThreadPoolExecutor(len(done)) as pool:
        list(pool.map(work, range(len(done))))
    return sum(done) / (time.perf_counter() - started)


def infer_for(classifier: Classifier, pixels: list[Any], seconds: float) -> float:
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        classifier.infer(pixels[done % len(pixels)])
        done += 1
    return done / (time.perf_counter() - started)


# --- the machine ---


def resident(pid: int) -> float:
    """Megabytes in memory."""
    found = re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024 / 1e6


def cpu_of(pid: int) -> float:
    """Seconds of processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write(rows: Sequence[Row], used: str) -> None:
    here = Path(__file__)
    with here.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*asdict(rows[0]), "measured_on"])
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {**asdict(row), "value": f"{row.value:.4g}", "measured_on": f"{used}, {describe_machine()}"}
            )
    lines = [
        f"{used}, load {os.getloadavg()[0]:.1f}. {describe_machine()}",
        "",
        "| | | bar | holds | |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        whole = row.value == int(row.value) or row.value >= 1000
        value = f"{row.value:,.0f}" if whole else f"{row.value:.3g}"
        holds = "" if row.holds is None else "yes" if row.holds else "no"
        lines.append(f"| {row.what} | {value} {row.unit} | {row.bar} | {holds} | {row.detail} |")
    here.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
