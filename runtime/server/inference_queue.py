"""A bounded queue in front of the engine: many clients, one model.

A few threads decode photos in parallel within the memory limit of runtime/preprocess, then take turns at the
sessions of the engine: one for each core, if the model is small. A photo takes a slot when its body has
arrived, and clients take turns. When slots or memory are short, the client that uses most of them gets 503
with a Retry-After header.
"""

import asyncio
import math
import statistics
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from runtime.common.errors import PictureError, UnsupportedPictureError
from runtime.inference.classifier import Classifier
from runtime.inference.engines import default_threads
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.prediction import Prediction
from runtime.inference.prefetch import DECODERS
from runtime.server.errors import RequestRejected
from runtime.server.fair_executor import FairExecutor
from runtime.server.multipart import Upload, read_upload
from runtime.server.request_body import BodyBuffer, Receive, fill_buffer, no_memory_error

MAX_RETRY_AFTER = 30  # seconds
TIMINGS_KEPT = 1000  # photos in the latency percentiles
SLOW_AFTER = 1.0  # seconds behind the minimum rate, after which a body gives its memory to others
TIMINGS_FOR_ESTIMATE = 100  # photos in the estimate of Retry-After

# Photos of one client at a time: more threads are left for others while its pictures are slow to decode.
MIN_PER_CLIENT = 2

Result = TypeVar("Result")


@dataclass(frozen=True)
class RequestTiming:
    """The time of one answered photo, in seconds."""

    total: float  # from the request's head to the answer, including upload and waiting
    decode: float
    infer: float


@dataclass(eq=False)
class PendingPhoto:
    """One photo from the head of its request to its answer."""

    address: str  # the client's
    buffer: BodyBuffer = field(default_factory=BodyBuffer)
    job: "Future[Any] | None" = None  # None while the body arrives: then it has no slot

    def is_started(self) -> bool:
        return self.job is not None and (self.job.running() or self.job.done())


@dataclass
class InferenceQueue:
    """Classifies request bodies. Call its methods on the event loop; the work runs in threads."""

    model: ReloadingClassifier
    capacity: int = 64  # photos that are waiting or being classified
    max_upload_bytes: int = 32_000_000  # per body
    on_answer: Callable[[RequestTiming, Prediction], None] = lambda timing, prediction: None
    # Called in a thread of the queue with each prediction and the bytes of its photo, before the answer.
    on_photo: Callable[[Prediction, bytes], None] = lambda prediction, data: None
    photos: list[PendingPhoto] = field(default_factory=list)  # oldest first
    answered: int = 0
    timings: deque[RequestTiming] = field(default_factory=lambda: deque(maxlen=TIMINGS_KEPT))

    def __post_init__(self) -> None:
        self.max_buffered_bytes = 2 * self.max_upload_bytes
        DECODERS.start_one()
        cores = default_threads()
        per_client = max(cores, MIN_PER_CLIENT)
        self._executor = FairExecutor(per_client + cores, per_client, "classify")

    @property
    def in_flight(self) -> int:
        """The number of photos that are waiting or being classified."""
        return sum(photo.job is not None for photo in self.photos)

    @property
    def receiving(self) -> int:
        """The number of photos whose bodies arrive."""
        return len(self.photos) - self.in_flight

    @property
    def buffered_bytes(self) -> int:
        """The size of all bodies in memory."""
        return sum(photo.buffer.size for photo in self.photos)

    async def classify(
        self, content_type: str, content_length: int | None, receive: Receive, address: str = ""
    ) -> Prediction:
        """The prediction for one request's body. Clients with other addresses take turns.

        Raises RequestRejected, ClientDisconnected and EngineError.
        """
        started = time.perf_counter()
        prediction = await self.process(self._classify, content_type, content_length, receive, address)
        ms = prediction.ms
        timing = RequestTiming(time.perf_counter() - started, ms["decode"] / 1000, ms["infer"] / 1000)
        self.answered += 1
        self.timings.append(timing)
        self.on_answer(timing, prediction)
        return prediction

    async def process(
        self,
        handle: Callable[[Classifier, Upload], Result],
        content_type: str,
        content_length: int | None,
        receive: Receive,
        address: str = "",
    ) -> Result:
        """The result of `handle` for the picture in one request's body; a thread of the queue calls it.

        Raises RequestRejected, also for a PictureError of `handle`, ClientDisconnected and EngineError.
        """
        with self._pending(PendingPhoto(address)) as photo:
            buffer = photo.buffer
            self._replaceable_slot(address)  # a client need not send a photo that would be rejected
            await fill_buffer(
                buffer,
                receive,
                self.max_upload_bytes,
                content_length,
                lambda byte_count: self._reserve(photo, byte_count),
            )
            self._take_slot(photo)
            work = partial(_handle_body, handle, self.model, content_type, buffer)
            photo.job = job = self._executor.submit(address, work)
            try:
                return await asyncio.wrap_future(job)
            except asyncio.CancelledError:
                raise buffer.revoked or asyncio.CancelledError from None

    async def classify_gray(self) -> None:
        """Runs the model on a gray picture, to check that threads and engine respond. Raises EngineError."""
        await asyncio.wrap_future(self._executor.submit("", partial(_classify_gray, self.model)))

    def full_error(self) -> RequestRejected:
        """The 503 answer. Retry-After is the estimated time until all photos in the queue are answered."""
        recent = list(self.timings)[-TIMINGS_FOR_ESTIMATE:]
        per_photo = statistics.mean(timing.decode + timing.infer for timing in recent) if recent else 0.0
        seconds = min(MAX_RETRY_AFTER, max(1, math.ceil(per_photo * self.in_flight)))
        return RequestRejected(503, f"too many photos at once: retry in {seconds} s", retry_after=seconds)

    def close(self) -> None:
        self._executor.shutdown()

    def _classify(self, classifier: Classifier, upload: Upload) -> Prediction:
        prediction = replace(classifier(upload.data), source=upload.name)
        self.on_photo(prediction, upload.data)
        return prediction

    @contextmanager
    def _pending(self, photo: PendingPhoto) -> Iterator[PendingPhoto]:
        self.photos.append(photo)
        try:
            yield photo
        except BaseException as error:
            _clear_frames(error)
            raise
        finally:
            self.photos.remove(photo)
            photo.buffer.clear()

    def _take_slot(self, photo: PendingPhoto) -> None:
        """Raises RequestRejected (503) if there is none for this client."""
        while (replaced := self._replaceable_slot(photo.address)) is not None:
            self._reject(replaced)

    def _replaceable_slot(self, address: str) -> PendingPhoto | None:
        """The photo whose slot the next photo from `address` takes; None if a slot is free.

        It is the newest one of the client with most photos, as in stochastic fairness queueing (McKenney,
        1990). Raises RequestRejected (503) if that is the client at `address`, or if all photos are in work.
        """
        with_slot = [photo for photo in self.photos if photo.job is not None and photo.buffer.revoked is None]
        if len(with_slot) < self.capacity:
            return None
        count = Counter(photo.address for photo in with_slot)
        for photo in reversed(with_slot):
            if not photo.is_started() and count[photo.address] == max(count.values()):
                if count[photo.address] > count[address] + 1:
                    return photo
                break
        raise self.full_error()

    def _reserve(self, photo: PendingPhoto, byte_count: int) -> None:
        """Makes room for a part of a photo. Raises RequestRejected (503) if this client gets no room.

        A client with few bytes in memory may use a reserve, because a photo in work keeps its memory.
        """
        held = sum(other.buffer.size for other in self.photos if other.address == photo.address) + byte_count
        reserve = self.max_upload_bytes // 2 if held <= self.max_upload_bytes // 4 else 0
        while self.buffered_bytes + byte_count > self.max_buffered_bytes + reserve:
            self._reject(self._replaceable_body(photo))

    def _replaceable_body(self, newer: PendingPhoto) -> PendingPhoto:
        """The photo that loses its memory: a stalled one, else one of a client that holds over half of it.

        Raises RequestRejected (503) if there is none.
        """
        others = [photo for photo in self.photos if photo is not newer and photo.buffer.size]
        slowest = max(
            (photo for photo in others if photo.job is None),
            key=lambda photo: photo.buffer.seconds_behind(),
            default=None,
        )
        if slowest is not None and slowest.buffer.seconds_behind() > SLOW_AFTER:
            return slowest
        held: Counter[str] = Counter()
        for photo in others:
            held[photo.address] += photo.buffer.size
        for photo in reversed(others):
            if not photo.is_started() and held[photo.address] > self.max_buffered_bytes / 2:
                if photo.address != newer.address:
                    return photo
                break
        raise self.full_error()

    def _reject(self, photo: PendingPhoto) -> None:
        """Ends a photo: its client gets 503. Does nothing if a thread has started it meanwhile."""
        if photo.job is None or photo.job.cancel():
            photo.buffer.revoke(self.full_error())


def _handle_body(
    handle: Callable[[Classifier, Upload], Result],
    model: ReloadingClassifier,
    content_type: str,
    buffer: BodyBuffer,
) -> Result:
    try:
        return _handle_upload(handle, model, content_type, buffer)
    except BaseException as error:
        _clear_frames(error)
        raise


def _clear_frames(error: BaseException | None) -> None:
    """Frees the local variables of the functions that an exception has left, among them parts of a body.

    They would stay while the rejected client sends the rest of its body, up to 20 s, and then until the next
    garbage collection, because some of them refer to the exception.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _handle_upload(
    handle: Callable[[Classifier, Upload], Result],
    model: ReloadingClassifier,
    content_type: str,
    buffer: BodyBuffer,
) -> Result:
    name = "-"
    try:
        upload = read_upload(content_type, buffer.take())
        name = upload.name
        return handle(model.current(), upload)
    except MemoryError:
        raise no_memory_error() from None
    except UnsupportedPictureError as error:
        raise RequestRejected(415, str(error), source=name) from None
    except PictureError as error:
        raise RequestRejected(400, str(error), source=name) from None


def _classify_gray(model: ReloadingClassifier) -> None:
    classifier = model.current()
    classifier.infer(np.full((*classifier.model.contract.input_size, 3), 128, np.uint8))
