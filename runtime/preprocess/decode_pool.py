"""Decodes untrusted pictures in worker processes, so that a hostile picture affects only its own request.

DecodePool.decode gives the pixels of picture.read_picture, with limits of time and memory: a worker that
exceeds a limit is ended and replaced, and its picture gets an error. SECURITY.md lists what a worker may do.
"""

from __future__ import annotations

import atexit
import io
import os
import subprocess
import sys
import time
from contextlib import suppress
from math import inf
from pathlib import Path
from signal import Signals
from threading import Condition, Thread
from typing import IO, TYPE_CHECKING, BinaryIO

from runtime.common.errors import DecoderError, PictureError, UnsupportedPictureError
from runtime.preprocess.decode import CHUNK_BYTES, describe_error, open_encoded, read_all
from runtime.preprocess.decode_protocol import (
    ALL,
    COMMON_FORMATS,
    DAMAGED,
    GO,
    NEEDS_ALL,
    PIXELS,
    READY,
    REPLY,
    REQUEST,
    RESERVE,
    SHAPE,
    UNSUPPORTED,
)
from runtime.preprocess.formats import HEAD_BYTES, format_of
from runtime.preprocess.memory import DECODE_MEMORY

if TYPE_CHECKING:
    from runtime.preprocess.decode import EncodedSource
    from runtime.preprocess.picture import Pixels

# A worker limits its own CPU time. This is the limit where it cannot (Windows), or waits forever. It also
# applies to each read of CHUNK_BYTES, as from a network folder; the time of reading is no time of decoding.
MAX_SECONDS = 60.0
# A picture that takes longer continues at low priority, and its slot is free for another picture.
SLOW_SECONDS = 0.25
WATCH_INTERVAL = 0.05  # seconds
PIPE_BYTES = 2**18  # the pixels of a model's input fit in
MAX_REASON_BYTES = 1000

TAKES_TOO_LONG = "takes too long to decode: save it again in a photo editor"
READS_TOO_LONG = "takes too long to read: check its disk or network folder, or copy it to this machine"
# Libraries may be where only these variables name them. Everything else in the environment stays here.
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
# One heap for all threads, and large blocks go back to the system: both keep the address space small.
VARIABLES = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1048576", "OPENBLAS_NUM_THREADS": "1"}
START = (
    "import sys; sys.path[:] = sys.argv.pop().split(chr(0x1f)); "
    "from runtime.preprocess.decode_worker import main; main()"
)


class WorkerEnded(Exception):
    """A worker has ended, or sent something that is no reply."""


class Worker:
    """A process that decodes one picture at a time."""

    def __init__(self, has_all_formats: bool) -> None:
        self.has_all_formats = has_all_formats
        self.since = inf  # time.monotonic() seconds when its present step began; inf while it waits
        self.is_slow = False
        self.waits_for_memory = False
        self.is_idle = True  # the last request has its reply
        self.is_ready = False
        self._is_reading = False  # the next part of the picture's file
        self._timeout = ""  # why it was ended by `time_out`
        folder = str(Path(__file__).parents[2])
        paths = [str(Path(path).absolute()) for path in [*sys.path, folder]]
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        arguments = [ALL] if has_all_formats else []
        try:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", START, *arguments, "\x1f".join(dict.fromkeys(paths))],
                env=kept | VARIABLES,
                pipesize=PIPE_BYTES,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except (OSError, ValueError) as error:
            raise DecoderError(f"the decoding process does not start: {error}") from None
        assert self._process.stdin and self._process.stdout
        self._requests: IO[bytes] = self._process.stdin
        self._replies: IO[bytes] = self._process.stdout

    def decode(self, file: BinaryIO, count: int, size: tuple[int, int], fit: bool) -> Pixels | None:
        """Returns the pixels of a file of `count` bytes; None if the worker lacks modules that it needs.

        Raises PictureError, OSError of the file, and WorkerEnded.
        """
        self.since, self.is_idle = time.monotonic(), False
        if not self.is_ready:
            if self._replies.read(len(READY)) != READY:
                raise WorkerEnded
            self.is_ready = True
            self.since = time.monotonic()
        self._write(REQUEST.pack(count, *size, fit))
        while count:
            if not (chunk := self._read_chunk(file, count)):
                raise PictureError("changed while it was read")
            self._write(chunk)
            count -= len(chunk)
        kind, length = self._reply()
        if kind == RESERVE:
            reserved = int.from_bytes(self._read(length, 8), "little")
            self.since, self.waits_for_memory = inf, True
            with DECODE_MEMORY.reserve(reserved):
                self.since, self.waits_for_memory = time.monotonic(), False
                self._write(GO)
                kind, length = self._reply()
        if kind == PIXELS:
            pixels = self._read_pixels(length, size, fit)
            self.is_idle = True
            return pixels
        text = self._read(length, MAX_REASON_BYTES).decode("utf-8", "replace")
        reason = " ".join(text.split()) or "is damaged"
        self.is_idle = True
        if kind == NEEDS_ALL:
            return None
        raise (UnsupportedPictureError if kind == UNSUPPORTED else PictureError)(reason)

    def slow_down(self) -> None:
        """Lowers the priority of the process, where the system allows that."""
        self.is_slow = True
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, 10)

    def uses_slot(self) -> bool:
        """Whether it uses one of the slots of the pool: it is not slow, and does not wait for memory."""
        return not self.is_slow and not self.waits_for_memory

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def time_out(self) -> None:
        self._timeout = READS_TOO_LONG if self._is_reading else TAKES_TOO_LONG
        self._process.kill()

    def kill(self) -> int:
        """Ends the process. Returns its exit code."""
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._requests, self._replies):
            with suppress(OSError):  # of a request that was not sent
                pipe.close()
        return code

    def reason(self) -> str:
        """Returns why the process ended. Raises DecoderError if it never started."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # its pipe closes before it ends
        code = self.kill()
        if not self.is_ready and not self._timeout:
            raise DecoderError(
                f"the decoding process does not start (exit code {code}): "
                "run python -m runtime.preprocess.decode_worker"
            )
        if self._timeout or code == -getattr(Signals, "SIGPROF", 0):
            return self._timeout or TAKES_TOO_LONG
        if code == -9:
            return describe_error(MemoryError())
        return "is damaged (its decoder crashed)"

    def _read_chunk(self, file: BinaryIO, count: int) -> bytes:
        """Returns the next of `count` bytes. Their reading has a time of its own."""
        self.since, self._is_reading = time.monotonic(), True
        try:
            return file.read(min(CHUNK_BYTES, count))
        finally:
            self.since, self._is_reading = time.monotonic(), False

    def _write(self, data: bytes) -> None:
        try:
            self._requests.write(data)
            self._requests.flush()
        except OSError:
            raise WorkerEnded from None

    def _reply(self) -> tuple[bytes, int]:
        """Returns the kind of the next reply, and the length of its data."""
        if len(head := self._replies.read(REPLY.size)) < REPLY.size:
            raise WorkerEnded
        kind, length = REPLY.unpack(head)
        if kind not in (RESERVE, PIXELS, NEEDS_ALL, DAMAGED, UNSUPPORTED):
            raise WorkerEnded
        return kind, length

    def _read_pixels(self, length: int, size: tuple[int, int], fit: bool) -> Pixels:
        data = self._read(length, SHAPE.size + size[0] * size[1] * 3)
        height, width = SHAPE.unpack_from(data) if length > SHAPE.size else (0, 0)
        is_expected = height <= size[0] and width <= size[1] if fit else (height, width) == size
        if not is_expected or not height * width or length != SHAPE.size + height * width * 3:
            raise WorkerEnded
        import numpy as np  # late: a command starts a worker before it loads numpy

        return np.frombuffer(data, np.uint8, offset=SHAPE.size).reshape(height, width, 3)

    def _read(self, length: int, limit: int) -> bytes:
        if length > limit or len(data := self._replies.read(length)) < length:
            raise WorkerEnded
        return data


class DecodePool:
    """Workers that decode: as many at a time as there are cores, and more while some of them are slow."""

    def __init__(self, size: int) -> None:
        self._size = size  # slots: pictures at a time, without slow pictures
        self._changed = Condition()  # guards the attributes below
        self._idle: list[Worker] = []
        self._active: list[Worker] = []
        self._watcher: Thread | None = None
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def start_one(self) -> None:
        """Starts a worker, ready when the first picture comes: call it before the work that comes first."""
        with suppress(DecoderError), self._changed:  # the error is raised for the first picture
            if not self._idle:
                self._idle.append(Worker(has_all_formats=False))

    def decode(self, source: EncodedSource, size: tuple[int, int], *, fit: bool = False) -> Pixels:
        """Returns a path, encoded bytes or a binary file as uint8 [H, W, 3], RGB; `size` is (H, W).

        With `fit`, the picture keeps its shape, and is reduced to `size` if it is larger. Raises PictureError
        and UnsupportedPictureError as read_picture does, and DecoderError when no worker can be started.
        """
        path = f"{source}: " if isinstance(source, (str, Path)) else ""
        try:
            with open_encoded(source) as (file, count):
                if count is None:
                    data = read_all(file)
                    file, count = io.BytesIO(data), len(data)
                needs_all = format_of(file.read(HEAD_BYTES)) not in COMMON_FORMATS
                pixels = self._decode(file, count, size, fit, needs_all)
                if pixels is None:
                    pixels = self._decode(file, count, size, fit, needs_all=True)
        except UnsupportedPictureError as error:
            raise UnsupportedPictureError(f"{path}{error}") from None
        except DecoderError:
            raise
        except Exception as error:  # also MemoryError, a path with a null byte, and an object of another type
            raise PictureError(f"{path}{describe_error(error)}") from None
        if pixels is None:
            raise DecoderError("the decoding process does not find numpy: install it again")
        return pixels

    def forget(self) -> None:
        """Forgets all workers: in a forked process they are its parent's."""
        self._changed = Condition()
        self._idle, self._active, self._watcher = [], [], None

    def close(self) -> None:
        """Ends all workers."""
        with self._changed:
            for worker in (*self._idle, *self._active):
                worker.time_out()
            self._idle.clear()

    def _decode(
        self, file: BinaryIO, count: int, size: tuple[int, int], fit: bool, needs_all: bool
    ) -> Pixels | None:
        file.seek(0)
        worker = self._take(needs_all)
        try:
            return worker.decode(file, count, size, fit)
        except WorkerEnded:
            raise PictureError(worker.reason()) from None
        finally:
            self._put_back(worker)

    def _take(self, needs_all: bool) -> Worker:
        """Returns an idle or a new worker when a slot is free. Raises DecoderError."""
        with self._changed:
            self._changed.wait_for(lambda: sum(worker.uses_slot() for worker in self._active) < self._size)
            if self._watcher is None:
                watcher = Thread(target=self._watch, name="decode-watch", daemon=True)
                watcher.start()  # may raise RuntimeError under a limit of threads or memory
                self._watcher = watcher
            self._idle = [worker for worker in self._idle if worker.is_alive()]
            fitting = [worker for worker in self._idle if worker.has_all_formats or not needs_all]
            if fitting:
                worker = next((ready for ready in fitting if ready.is_ready), fitting[0])
                self._idle.remove(worker)
            else:
                for other in self._idle:
                    other.kill()
                self._idle.clear()
                worker = Worker(needs_all)
            self._active.append(worker)
            self._changed.notify_all()
        return worker

    def _put_back(self, worker: Worker) -> None:
        worker.since = inf
        with self._changed:
            self._active.remove(worker)
            # The priority of a slow worker cannot be raised again.
            is_reusable = worker.is_idle and not worker.is_slow and len(self._idle) < self._size
            if is_reusable:
                self._idle.append(worker)
            self._changed.notify_all()
        if not is_reusable:
            worker.kill()
            if worker.is_ready:  # else its replacement would not start either
                self.start_one()  # so that the next picture need not wait

    def _watch(self) -> None:
        """Lowers the priority of slow workers and ends those that hang; the watcher thread's function."""
        while True:
            with suppress(MemoryError), self._changed:
                self._changed.wait_for(lambda: self._active)
                now = time.monotonic()
                for worker in self._active:
                    if now - worker.since > MAX_SECONDS:
                        worker.time_out()
                    elif worker.waits_for_memory:
                        self._changed.notify_all()
                    elif now - worker.since > SLOW_SECONDS and worker.is_ready and not worker.is_slow:
                        worker.slow_down()
                        # The slow worker is ended after its picture. Without another ready worker by then,
                        # the next slow picture would take the only worker, and others would wait for a start.
                        if len(self._idle) < self._size:
                            with suppress(DecoderError):  # raised for the next picture
                                self._idle.append(Worker(has_all_formats=False))
                        self._changed.notify_all()
            time.sleep(WATCH_INTERVAL)
