"""A bounded queue in front of the engine: many clients, one model.

A few threads decode photos in parallel within the memory limit of runtime/preprocess, then take turns at the
engine. A request that finds no free slot gets 503 with a Retry-After header.
"""

import asyncio
import ctypes
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import numpy as np

from runtime.common.errors import PictureError, UnsupportedPictureError
from runtime.inference.engines import default_threads
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.prediction import Prediction
from runtime.server.errors import RequestRejected
from runtime.server.multipart import read_upload
from runtime.server.request_body import Receive, read_body

MAX_RETRY_AFTER = 30  # seconds
TIMINGS_KEPT = 1000  # photos in the latency percentiles
TIMINGS_FOR_ESTIMATE = 100  # photos in the estimate of Retry-After

M_MMAP_THRESHOLD = -3  # from glibc's malloc.h
LARGE_BLOCK = 4 * 2**20  # bytes


@dataclass(frozen=True)
class RequestTiming:
    """The time of one answered photo, in seconds."""

    total: float  # from the request's head to the answer, including upload and waiting
    decode: float
    infer: float


@dataclass
class QueueSlot:
    """One request's place in the queue and the bytes that its body holds in memory."""

    queue: "InferenceQueue"
    reserved_bytes: int = 0

    def reserve(self, byte_count: int) -> None:
        """Counts bytes before they are stored. Raises RequestRejected (503) above the queue's limit."""
        if self.queue.buffered_bytes + byte_count > self.queue.max_buffered_bytes:
            raise self.queue.full_error()
        self.reserved_bytes += byte_count
        self.queue.buffered_bytes += byte_count


@dataclass
class InferenceQueue:
    """Classifies request bodies. Call its methods on the event loop; the work runs in threads."""

    model: ReloadingClassifier
    capacity: int = 64  # photos that are being received, waiting or being classified
    max_upload_bytes: int = 32_000_000  # per body
    on_answer: Callable[[RequestTiming], None] = lambda timing: None
    in_flight: int = 0
    buffered_bytes: int = 0  # of all bodies
    answered: int = 0
    timings: deque[RequestTiming] = field(default_factory=lambda: deque(maxlen=TIMINGS_KEPT))

    def __post_init__(self) -> None:
        return_large_blocks_to_system()
        self.max_buffered_bytes = 2 * self.max_upload_bytes
        self._pool = ThreadPoolExecutor(default_threads(), "classify")

    async def classify(self, content_type: str, content_length: int | None, receive: Receive) -> Prediction:
        """The prediction for one request's body.

        Raises RequestRejected, ClientDisconnected and EngineError.
        """
        started = time.perf_counter()
        with self._slot() as slot:
            body = await read_body(receive, self.max_upload_bytes, content_length, slot.reserve)
            work = self._pool.submit(_classify_body, self.model, content_type, body)
            del body  # the thread frees it after decoding
            prediction = await asyncio.wrap_future(work)
        ms = prediction.ms
        timing = RequestTiming(time.perf_counter() - started, ms["decode"] / 1000, ms["infer"] / 1000)
        self.answered += 1
        self.timings.append(timing)
        self.on_answer(timing)
        return prediction

    async def classify_gray(self) -> None:
        """Runs the model on a gray picture, to check that threads and engine respond. Raises EngineError."""
        await asyncio.wrap_future(self._pool.submit(_classify_gray, self.model))

    def full_error(self) -> RequestRejected:
        """The 503 answer. Retry-After is the estimated time until all photos in the queue are answered."""
        recent = list(self.timings)[-TIMINGS_FOR_ESTIMATE:]
        per_photo = statistics.mean(timing.decode + timing.infer for timing in recent) if recent else 0.0
        seconds = min(MAX_RETRY_AFTER, max(1, math.ceil(per_photo * self.in_flight)))
        return RequestRejected(503, f"too many photos at once: retry in {seconds} s", retry_after=seconds)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _slot(self) -> Iterator[QueueSlot]:
        if self.in_flight >= self.capacity:
            raise self.full_error()
        self.in_flight += 1
        slot = QueueSlot(self)
        try:
            yield slot
        finally:
            self.in_flight -= 1
            self.buffered_bytes -= slot.reserved_bytes


def return_large_blocks_to_system() -> None:
    """Fixes glibc's threshold for blocks that free() returns to the system.

    By default glibc raises the threshold, and each decoding thread then keeps the memory of a large photo.
    """
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def _classify_body(model: ReloadingClassifier, content_type: str, body: bytes) -> Prediction:
    upload = read_upload(content_type, body)
    try:
        return replace(model.current()(upload.data), source=upload.name)
    except UnsupportedPictureError as error:
        raise RequestRejected(415, str(error), source=upload.name) from None
    except PictureError as error:
        raise RequestRejected(400, str(error), source=upload.name) from None


def _classify_gray(model: ReloadingClassifier) -> None:
    classifier = model.current()
    classifier.infer(np.full((*classifier.model.contract.input_size, 3), 128, np.uint8))
