"""Decodes the next pictures on another thread while the engine works on the current one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING

from runtime.common.errors import PictureError, UnsupportedPictureError
from runtime.inference.engines import default_threads
from runtime.preprocess.decode import SOURCES
from runtime.preprocess.decode_pool import DecodePool

if TYPE_CHECKING:
    from runtime.preprocess.picture import Pixels, Source

# Decoded pictures that wait for the engine: one is being handed over, one is being made. More would only
# take memory.
QUEUE_SIZE = 2

DECODERS = DecodePool(default_threads())  # of this process: models share them


@dataclass(frozen=True)
class DecodedPicture:
    """A source and its pixels, uint8 [H, W, 3], RGB, or the reason why it cannot be read."""

    source: Source
    pixels: Pixels | PictureError
    decode_ms: float


def decode(source: Source, size: tuple[int, int]) -> DecodedPicture:
    """Reads one picture as pixels of `size` (height, width), or as its PictureError."""
    started = time.perf_counter()
    try:
        pixels: Pixels | PictureError = _read(source, size)
    except PictureError as error:
        pixels = error
    return DecodedPicture(source, pixels, 1000 * (time.perf_counter() - started))


def _read(source: Source, size: tuple[int, int]) -> Pixels:
    import numpy as np  # late, as in engines.py

    if not isinstance(source, np.ndarray):
        return DECODERS.decode(source, size)
    # Pillow would take the values 0 to 255 of a wider type for nearly black, and two channels for grey.
    if source.dtype != np.uint8 or source.shape[2:] == (2,):
        raise UnsupportedPictureError(f"is an array {source.dtype} {list(source.shape)}: {SOURCES}")
    from runtime.preprocess.picture import read_picture  # late: it loads Pillow, which only the workers need

    return read_picture(source, size)


@contextmanager
def prefetch(sources: Iterable[Source], size: tuple[int, int]) -> Iterator[Iterator[DecodedPicture]]:
    """Decodes the sources in their order on one other thread.

    One is enough: engines use all cores, and one decoder keeps up with them. An exception of the iterable
    itself is raised where the pictures are consumed.
    """
    pictures: Queue[DecodedPicture | BaseException | None] = Queue(QUEUE_SIZE)
    stopped = Event()

    def produce() -> None:
        try:
            for source in sources:
                if stopped.is_set():
                    return
                pictures.put(decode(source, size))
            pictures.put(None)
        except BaseException as error:
            pictures.put(error)

    def consume() -> Iterator[DecodedPicture]:
        while (picture := pictures.get()) is not None:
            if isinstance(picture, BaseException):
                raise picture
            yield picture

    Thread(target=produce, name="prefetch", daemon=True).start()
    try:
        yield consume()
    finally:
        stopped.set()
        with suppress(Empty):  # makes room for a producer that waits in put()
            while True:
                pictures.get_nowait()
