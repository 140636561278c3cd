"""Photos of many clients, one engine: what waits is bounded; who finds no place is told when to return.

Photos are decoded side by side in a few threads, as far as memory goes (runtime/picture.py), which take turns
at the engine.
"""

import asyncio
import ctypes
import math
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from runtime.common.errors import ModelError, PictureError, UnsupportedPictureError
from runtime.inference.classifier import Classifier
from runtime.inference.engines import default_threads
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.prediction import Prediction
from runtime.model_file.index import read_index
from runtime.server.auth import RequestRejected
from runtime.server.multipart import read_upload

# A body may take this long, and a second more for each so many bytes of it: a phone on a poor network is
# slower than a cable, but not slower than this. (The rule is that of Apache's mod_reqtimeout.)
BODY_SECONDS = 20.0
BODY_RATE = 16_000

BEAT_EVERY = 5.0  # seconds between proofs that photos are answered
DEAD_AFTER = 30.0  # without one, the service says that it is not well
MAX_PATIENCE = 30  # seconds, the longest Retry-After
REMEMBERED = 1000  # answers that the percentiles are of

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE_BLOCK = 4 * 2**20  # bytes

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True)
class RequestTiming:
    """What an answered photo took, in seconds."""

    total: float  # from the request's head to the answer, its body's arrival and its waiting included
    decode: float
    infer: float


class Disconnected(Exception):
    """The client went away before its request was whole."""


@dataclass
class QueueSlot:
    """A request's place among those that are served; `hold` counts the bytes it keeps in memory."""

    service: "InferenceQueue"
    held: int = 0

    def hold(self, count: int) -> None:
        if self.service.held + count > self.service.max_held:
            raise self.service.busy()
        self.held += count
        self.service.held += count


@dataclass
class InferenceQueue:
    """Classifies the bodies of requests. Its methods are the event loop's; the work is done in threads."""

    live: ReloadingClassifier
    places: int = 64  # photos that are being received, waiting or answered
    max_bytes: int = 32_000_000  # of one body
    on_answer: Callable[[RequestTiming], None] = lambda times: None
    waiting: int = 0
    held: int = 0  # bytes of all bodies in memory
    answered: int = 0
    times: deque[RequestTiming] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def __post_init__(self) -> None:
        give_memory_back()
        self.max_held = 2 * self.max_bytes
        self.pool = ThreadPoolExecutor(default_threads(), "classify")
        self._beaten = time.monotonic()

    async def classify(self, content_type: str, length: int | None, receive: Receive) -> Prediction:
        """The answer to one request's body. Raises Refused, Disconnected, EngineError."""
        started = time.perf_counter()
        with self.place() as place:
            body = await read_body(receive, self.max_bytes, length, place.hold)
            work = self.pool.submit(_answer, self.live, content_type, body)
            del body
            prediction = await asyncio.wrap_future(work)
        ms = prediction.ms
        times = RequestTiming(time.perf_counter() - started, ms["decode"] / 1000, ms["infer"] / 1000)
        self.answered += 1
        self.times.append(times)
        self.on_answer(times)
        return prediction

    @contextmanager
    def place(self) -> Iterator[QueueSlot]:
        """A place, while there is one. Raises Refused: 503."""
        if self.waiting >= self.places:
            raise self.busy()
        self.waiting += 1
        place = QueueSlot(self)
        try:
            yield place
        finally:
            self.waiting -= 1
            self.held -= place.held

    def busy(self) -> RequestRejected:
        """Says when those who wait now will have been answered, by the time that photos took of late."""
        recent = list(self.times)[-100:]
        each = statistics.mean(times.decode + times.infer for times in recent) if recent else 0.0
        patience = min(MAX_PATIENCE, max(1, math.ceil(each * self.waiting)))
        return RequestRejected(
            503, f"too many photos at once: try again in {patience} s", retry_after=patience
        )

    async def beat(self, every: float, alive: Callable[[], bool], tell: Callable[[], object]) -> None:
        """Calls `tell` as long as photos are answered: now and then by answering a grey one. Never ends."""
        loop = asyncio.get_running_loop()
        answered = -1
        while True:
            if answered == self.answered:
                await loop.run_in_executor(self.pool, _answer_grey, self.live)
            answered = self.answered
            if alive():
                self._beaten = time.monotonic()
                tell()
            await asyncio.sleep(every)

    def is_well(self) -> bool:
        return time.monotonic() - self._beaten < DEAD_AFTER

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


async def read_body(
    receive: Receive,
    max_bytes: int,
    length: int | None = None,
    hold: Callable[[int], None] = lambda count: None,
) -> bytes:
    """A request's body, which is not read any further once it is known to be larger, or comes too slowly.

    Raises Refused: 408 or 413; Disconnected; and what `hold` raises, which is told of each part's bytes.
    """
    too_large = RequestRejected(413, f"is over {max_bytes / 1e6:g} MB, the most that is taken here")
    if length is not None and length > max_bytes:
        raise too_large
    parts: list[bytes] = []
    size, started = 0, time.monotonic()
    while True:
        left = started + BODY_SECONDS + size / BODY_RATE - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, left))
        except asyncio.TimeoutError:
            raise RequestRejected(408, "came too slowly") from None
        if message["type"] == "http.disconnect":
            raise Disconnected
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise too_large
        hold(len(part))
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def give_memory_back() -> None:
    """What a picture took goes back to the system: glibc would keep much of it for each thread that decoded.

    It raises the size of the blocks that it gives back at once by those that it has seen, unless one is set.
    """
    with suppress(OSError, AttributeError, TypeError):  # other systems have other ways
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def _answer(live: ReloadingClassifier, content_type: str, body: bytes) -> Prediction:
    upload = read_upload(content_type, body)
    try:
        return replace(live.now()(upload.data), source=upload.name)
    except UnsupportedPictureError as error:
        raise RequestRejected(415, str(error), source=upload.name) from None
    except PictureError as error:
        raise RequestRejected(400, str(error), source=upload.name) from None


def _answer_grey(live: ReloadingClassifier) -> None:
    classifier = live.now()
    classifier.infer(np.full((*classifier.model.contract.input_size, 3), 128, np.uint8))


def speed(service: InferenceQueue) -> dict[str, object]:
    """What the last photos took, milliseconds; None before there was one."""
    totals = sorted(1000 * times.total for times in service.times)

    def quantile(share: float) -> float | None:
        return round(totals[min(len(totals) - 1, int(share * len(totals)))], 1) if totals else None

    def median(name: str) -> float | None:
        return round(1000 * statistics.median(getattr(t, name) for t in service.times), 1) if totals else None

    return {
        "photos": service.answered,
        "p50_ms": quantile(0.5),
        "p95_ms": quantile(0.95),
        "decode_ms": median("decode"),
        "infer_ms": median("infer"),
    }


def card(classifier: Classifier) -> dict[str, object]:
    """What is known of the model in use: its contract, its file, and the figures of its index."""
    model, contract = classifier.model, classifier.model.contract
    return {
        "name": contract.name,
        "labels": list(contract.labels),
        "input": list(contract.input_size),
        "created": contract.created,
        "synthetic": contract.synthetic,
        "file": model.path.name,
        "format": model.format,
        "precision": model.precision,
        "bytes": len(model.data),
        "sha256": model.sha256,
        "parity": _parity(classifier),
    }


def _parity(classifier: Classifier) -> dict[str, object] | None:
    """How the file compared with the trained model when it was exported, in this engine if it was run there.

    Its index says so; what is not a number there is left out.
    """
    model = classifier.model
    try:
        index = read_index(model.path.parent, model.signature)
    except ModelError:
        return None
    listed = next((file for file in index.files if file.sha256 == model.sha256), None)
    if listed is None:
        return None
    engines = listed.metrics.get("parity")
    if not isinstance(engines, dict):
        return None
    mine = classifier.session.engine
    engine = mine if mine in engines else next((e for e in engines if _kind(e) == _kind(mine)), None)
    figures = engines.get(engine)
    if not isinstance(figures, dict):
        return None
    wanted = ("n", "top1", "agreement", "mean_dp", "max_dp")
    return {"engine": engine} | {name: figures[name] for name in wanted if _is_number(figures.get(name))}


def _kind(engine: str) -> str:
    """Its name without its version."""
    return engine.partition(" ")[0]


def _is_number(value: object) -> bool:
    """Whether JSON and a page can hold it: neither NaN nor infinite, nor an int as good as that."""
    return isinstance(value, int | float) and type(value) is not bool and abs(value) < 1e300
