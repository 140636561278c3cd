"""Decodes pictures in a separate process, which runtime/preprocess/decode_pool.py starts.

Before the first picture arrives, the process drops the rights that decoding does not need: it cannot open
files or sockets, change files or other processes, or dump core. For each picture the kernel limits its CPU
time (and ends the process) and its address space (and allocation fails), both to the needs of a picture with
this header.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

from runtime.common.errors import UnsupportedPictureError
from runtime.preprocess.decode import describe_error, max_file_bytes
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
from runtime.preprocess.limits import DecodeCost
from runtime.preprocess.memory import total_memory
from runtime.preprocess.render import render
from runtime.preprocess.syscall_filter import allow_only_decoding

# Starting a worker is the same work on each machine, so its CPU time (0.1 s on a PC) is the unit of the
# limits of time. Decoding takes up to 0.5 units per megapixel, measured.
MIN_UNIT, MAX_UNIT = 0.05, 1.0  # seconds
HEADER_UNITS = 10
DECODE_UNITS, UNITS_PER_MEGAPIXEL, MAX_DECODE_UNITS = 10, 0.6, 60

MAX_DECODE_BYTES = 2**29  # for pixels, also where half of the machine's memory is more
MIN_SPARE_BYTES, MAX_SPARE_BYTES = 2**25, 2**26  # for metadata, and for Python and Pillow

# TiffImagePlugin also reads EXIF data.
COMMON_MODULES = ("PIL.JpegImagePlugin", "PIL.PngImagePlugin", "PIL.TiffImagePlugin", "PIL.ImageCms")
OTHER_MODULES = (
    *("PIL.WebPImagePlugin", "PIL.GifImagePlugin", "PIL.BmpImagePlugin", "PIL.AvifImagePlugin"),
    *("pillow_heif", "numpy"),
)


class ProcessLimits:
    """The kernel's limits for this process. On macOS there is none on memory, on Windows none at all."""

    def __init__(self, unit: float) -> None:
        self._unit = unit  # seconds
        self._spare = min(MAX_SPARE_BYTES, max(MIN_SPARE_BYTES, total_memory() // 16))
        self._statm: BinaryIO | None = None
        with suppress(OSError):
            self._statm = Path("/proc/self/statm").open("rb", buffering=0)  # noqa: SIM115 (stays open)
        self._most = self._address_space() + max_file_bytes() + _max_decode_bytes() + self._spare
        self._set_address_space(self._most, is_final=True)
        if sys.platform != "win32":
            import resource

            for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
                resource.setrlimit(limit, (0, 0))

    def limit_header(self) -> None:
        """Limits time and memory until the header is read."""
        self._base = self._address_space()
        self._set_address_space(self._base + self._spare)
        self._set_seconds(HEADER_UNITS * self._unit)

    def limit_pixels(self, cost: DecodeCost) -> None:
        """Limits time and memory to decode a picture of this cost."""
        self._set_address_space(self._base + decode_bytes(cost) + self._spare)
        units = min(MAX_DECODE_UNITS, DECODE_UNITS + UNITS_PER_MEGAPIXEL * cost.pixels / 1e6)
        self._set_seconds(units * self._unit)

    def lift(self) -> None:
        """Lifts the limits of a picture: the next one may be larger."""
        self._set_seconds(0)
        self._set_address_space(self._most)

    def _set_seconds(self, seconds: float) -> None:
        # Not RLIMIT_CPU, which counts whole seconds. SIGPROF ends a process that does not handle it.
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_PROF, seconds)

    def _set_address_space(self, size: int, is_final: bool = False) -> None:
        if sys.platform != "win32" and self._statm:
            import resource

            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
            resource.setrlimit(resource.RLIMIT_AS, (soft, soft if is_final else hard))

    def _address_space(self) -> int:
        """Returns the bytes of address space that the process has now; 0 where only Linux reports it."""
        if self._statm is None or sys.platform == "win32":
            return 0
        return int(os.pread(self._statm.fileno(), 64, 0).split()[0]) * os.sysconf("SC_PAGE_SIZE")


def decode_bytes(cost: DecodeCost) -> int:
    """Returns the bytes of memory that a worker may take for the pixels."""
    return min(cost.bytes, _max_decode_bytes())


def _max_decode_bytes() -> int:
    return min(MAX_DECODE_BYTES, total_memory() // 2)


def main() -> None:
    """Answers requests until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the end of the input ends this
        signal.signal(number, signal.SIG_IGN)
    for name in COMMON_MODULES:
        import_module(name)
    unit = min(MAX_UNIT, max(MIN_UNIT, time.process_time()))
    # When memory runs out, the kernel ends this process, and not the process that it decodes for.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    has_all_formats = ALL in sys.argv
    for name in OTHER_MODULES if has_all_formats else ():
        with suppress(ImportError):
            import_module(name)
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # messages of libraries are no replies
    limits = ProcessLimits(unit)
    allow_only_decoding()
    replies.write(READY)
    replies.flush()
    while head := requests.read(REQUEST.size):
        count, height, width, fit = REQUEST.unpack(head)
        data = requests.read(count)
        if len(data) < count:  # the other side has ended
            return
        kind, reply = _answer(data, (height, width), fit, has_all_formats, limits, requests, replies)
        limits.lift()
        _send(replies, kind, reply)
        del data, reply


def _answer(
    data: bytes,
    size: tuple[int, int],
    fit: bool,
    has_all_formats: bool,
    limits: ProcessLimits,
    requests: BinaryIO,
    replies: BinaryIO,
) -> tuple[bytes, bytes]:
    """Returns kind and data of the reply to a picture."""

    @contextmanager
    def reserve(cost: DecodeCost) -> Iterator[None]:
        _send(replies, RESERVE, decode_bytes(cost).to_bytes(8, "little"))
        if requests.read(len(GO)) != GO:
            sys.exit()
        limits.limit_pixels(cost)
        yield

    try:
        if not has_all_formats and format_of(data[:HEAD_BYTES]) not in COMMON_FORMATS:
            return NEEDS_ALL, b""
        limits.limit_header()
        image = render(data, size, reserve, fit=fit)
        return PIXELS, SHAPE.pack(image.height, image.width) + image.tobytes()
    except UnsupportedPictureError as error:
        return UNSUPPORTED, str(error).encode()
    except Exception as error:  # Pillow's plugins raise exceptions of many types for damaged data
        if not has_all_formats and (
            isinstance(error, ImportError) or getattr(error, "errno", 0) == errno.EMFILE
        ):
            return NEEDS_ALL, b""  # a module cannot be loaded any more, such as numpy for 16-bit pictures
        return DAMAGED, describe_error(error).encode("utf-8", "replace")


def _send(replies: BinaryIO, kind: bytes, data: bytes) -> None:
    replies.write(REPLY.pack(kind, len(data)))
    replies.write(data)
    replies.flush()


if __name__ == "__main__":
    main()
