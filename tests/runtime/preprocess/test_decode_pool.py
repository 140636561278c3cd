"""Decoding in processes with limits: the same pixels, and hostile pictures cost little."""

from __future__ import annotations

import io
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.common.errors import DecoderError, PictureError, UnsupportedPictureError
from runtime.preprocess import decode_pool
from runtime.preprocess.decode_pool import DecodePool
from runtime.preprocess.memory import DecodeMemory
from runtime.preprocess.picture import read_picture
from tests.fuzz.targets import picture_seeds
from tests.helpers import PATIENCE, wait_for
from tests.runtime.preprocess.hostile import GOOD, HOSTILE, exif_jpeg_of_large_segments
from tests.runtime.preprocess.pictures import SIZE, encode

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    pool = DecodePool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[DecodePool]:
    pool = DecodePool(2)
    yield pool
    pool.close()


@pytest.mark.parametrize("seed", range(len(picture_seeds())))
def test_a_worker_gives_the_pixels_of_read_picture(seed: int, shared: DecodePool) -> None:
    """Each format in each mode that is decoded differently; refused formats give the same error."""
    data = picture_seeds()[seed]
    try:
        expected = read_picture(data, SIZE)
    except UnsupportedPictureError as error:
        with pytest.raises(UnsupportedPictureError) as caught:
            shared.decode(data, SIZE)
        assert str(caught.value) == str(error)
    else:
        pixels = shared.decode(data, SIZE)
        assert pixels.dtype == np.uint8 and np.array_equal(pixels, expected)


def test_a_webp_of_a_phone_is_read(pool: DecodePool) -> None:
    """Pillow allocates its pixels as soon as it opens the file."""
    image = Image.new("RGB", (4000, 3000), (200, 100, 50))
    pixels = pool.decode(encode(image, "WEBP", method=0, quality=50), SIZE)
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 6


def test_sources_of_all_kinds_are_read(pool: DecodePool, tmp_path: Path) -> None:
    path = tmp_path / "фото.jpg"
    path.write_bytes(GOOD)
    expected = read_picture(GOOD)
    for source in (path, str(path), GOOD, bytearray(GOOD)):
        assert np.array_equal(pool.decode(source, (224, 224)), expected)
    with path.open("rb") as file:
        assert np.array_equal(pool.decode(file, (224, 224)), expected)
    for bad in (b"", GOOD[:-99], b"\xff\xd8\xff", tmp_path, tmp_path / "missing", "a\0b", None):
        with pytest.raises(PictureError) as ours:
            pool.decode(bad, SIZE)
        with pytest.raises(PictureError) as theirs:
            read_picture(bad, SIZE)
        assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize(
    ("size", "orientation", "shape"),
    [
        ((400, 200), 1, (60, 120, 3)),
        ((400, 200), 6, (120, 60, 3)),  # stored sideways
        ((100, 50), 1, (50, 100, 3)),  # smaller than the limit
        ((4000, 3000), 1, (90, 120, 3)),  # decoded at a reduced scale
    ],
)
def test_a_picture_that_is_fitted_keeps_its_shape(
    size: tuple[int, int], orientation: int, shape: tuple[int, int, int], shared: DecodePool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = shared.decode(
        encode(Image.new("RGB", size, (200, 100, 50)), "JPEG", exif=exif), (120, 120), fit=True
    )
    assert pixels.dtype == np.uint8 and pixels.shape == shape
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 3


# Decodes the file twice, as a service does, and prints what its workers took in all.
MEASURE = """
import resource, sys, time
from runtime.common.errors import PictureError
from runtime.preprocess.decode_pool import DecodePool
if __name__ == "__main__":
    pool = DecodePool(1)
    started = time.monotonic()
    try:
        print(pool.decode(sys.argv[1], (224, 224)).shape)
    except PictureError as error:
        print(error)
    seconds = time.monotonic() - started
    pixels = pool.decode(sys.argv[2], (224, 224))
    for worker in pool._idle:
        worker.kill()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, pixels.mean())
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_picture_costs_seconds_and_megabytes(name: str, tmp_path: Path) -> None:
    """Within limits it may be decoded; otherwise its error is one line. The next picture is decoded."""
    hostile, good = tmp_path / "hostile", tmp_path / "good"
    hostile.write_bytes(HOSTILE[name]())
    good.write_bytes(GOOD)
    run = [sys.executable, "-c", MEASURE, str(hostile), str(good)]
    result, figures = subprocess.run(run, capture_output=True, check=True, text=True).stdout.splitlines()
    _, cpu, megabytes, mean = map(float, figures.split())
    assert result.startswith(f"{hostile}: ") or result == "(224, 224, 3)"
    assert cpu < 9 and megabytes < 620
    assert mean == read_picture(GOOD).mean()


@linux
@pytest.mark.slow
def test_a_small_file_with_much_to_read_is_ended_by_its_time(pool: DecodePool) -> None:
    with pytest.raises(PictureError, match="takes too long to decode: save it again"):
        pool.decode(exif_jpeg_of_large_segments(30_000_000), SIZE)
    assert [worker.is_ready for worker in pool._idle] == [False]  # its replacement
    assert pool.decode(GOOD, SIZE).shape == (*SIZE, 3)


@linux
def test_a_worker_cannot_open_files_or_sockets() -> None:
    code = """
import os, socket
from runtime.preprocess.decode_worker import ProcessLimits
limits = ProcessLimits(0.1)
for attempt in (lambda: open("/etc/hostname"), socket.socket, os.pipe):
    try:
        attempt()
    except OSError as error:
        print(error.strerror)
limits.limit_header()
try:
    bytes(200_000_000)
except MemoryError:
    print("no memory")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.splitlines() == 3 * ["Too many open files"] + ["no memory"]


FILTERED_CALLS = """
import os, resource, sys, threading
from runtime.preprocess.syscall_filter import allow_only_decoding
path, parent = sys.argv[1], os.getppid()
assert allow_only_decoding()
for attempt in (
    lambda: os.unlink(path),
    lambda: os.truncate(path, 0),
    lambda: os.rename(path, path + "2"),
    lambda: os.symlink(path, path + "2"),
    lambda: os.link(path, path + "2"),
    lambda: os.chmod(path, 0),
    lambda: os.utime(path),
    lambda: os.mkdir(path + "2"),
    os.fork,
    lambda: os.execv(sys.executable, [sys.executable]),
    lambda: os.kill(parent, 0),
    lambda: os.setpriority(os.PRIO_PROCESS, parent, 19),
    lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE),
):
    try:
        attempt()
        print("done")
    except OSError as error:
        print(error.strerror)
thread = threading.Thread(target=print, args=["a thread"])  # as some decoders start
thread.start()
thread.join()
"""


@linux
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the filter has no numbers for this processor"
)
def test_a_worker_cannot_change_files_or_other_processes(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"data")
    done = subprocess.run(
        [sys.executable, "-c", FILTERED_CALLS, tmp_path / "photo.jpg"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.splitlines() == 13 * ["Operation not permitted"] + ["a thread"]
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
    assert (tmp_path / "photo.jpg").read_bytes() == b"data"


@linux
def test_a_worker_gets_no_environment_and_no_open_files(
    pool: DecodePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        pool.decode(GOOD, SIZE)
        process = Path("/proc", str(pool._idle[0]._process.pid))
        if platform.machine() in ("x86_64", "aarch64"):
            assert "Seccomp:\t2\n" in (process / "status").read_text()  # test_a_worker_cannot_change_files…
        assert b"SECRET" not in (process / "environ").read_bytes()
        names = [str(link.readlink()) for link in (process / "fd").iterdir()]
    assert not any(str(tmp_path) in name for name in names)
    limits = (process / "limits").read_text()
    for name in ("Max open files", "Max file size", "Max core file size"):
        (line,) = [line for line in limits.splitlines() if line.startswith(name)]
        assert line.split()[-3:-1] == ["0", "0"]


@linux
def test_a_worker_that_died_is_replaced(pool: DecodePool) -> None:
    pool.decode(GOOD, SIZE)
    (worker,) = pool._idle
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    assert pool.decode(GOOD, SIZE).shape == (*SIZE, 3)
    os.kill(pool._idle[0]._process.pid, signal.SIGSTOP)  # it takes the picture, and then crashes
    failures: list[Exception] = []

    def decode() -> None:
        try:
            pool.decode(GOOD, SIZE)
        except PictureError as error:
            failures.append(error)

    thread = threading.Thread(target=decode)
    thread.start()
    wait_for(lambda: bool(pool._active))
    os.kill(pool._active[0]._process.pid, signal.SIGSEGV)
    os.kill(pool._active[0]._process.pid, signal.SIGCONT)
    thread.join()
    assert [str(error) for error in failures] == ["is damaged (its decoder crashed)"]
    assert pool.decode(GOOD, SIZE).shape == (*SIZE, 3)


@linux
def test_a_worker_that_hangs_is_ended(pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.decode(GOOD, SIZE)
    os.kill(pool._idle[0]._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(decode_pool, "MAX_SECONDS", 0.3)
    with pytest.raises(PictureError, match="takes too long"):
        pool.decode(GOOD, SIZE)


class SlowFile(io.BytesIO):
    """A file on a slow network folder: each read of a part takes `seconds`."""

    seconds = 0.0

    def read(self, count: int | None = -1, /) -> bytes:
        if self.tell():  # not the head, which is read before a worker gets the picture
            time.sleep(self.seconds)
        return super().read(count)


def test_reading_a_file_slowly_is_not_decoding_it_slowly(
    pool: DecodePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = SlowFile(GOOD)
    monkeypatch.setattr(decode_pool, "open_encoded", lambda source: nullcontext((file, len(GOOD))))
    monkeypatch.setattr(decode_pool, "CHUNK_BYTES", len(GOOD) // 10)
    expected = pool.decode(tmp_path, SIZE)
    monkeypatch.setattr(decode_pool, "MAX_SECONDS", 2.0)
    file.seek(0)
    file.seconds = 0.3  # 10 times: more than the limit
    assert np.array_equal(pool.decode(tmp_path, SIZE), expected)
    file.seek(0)
    file.seconds = 3.0
    with pytest.raises(PictureError, match="takes too long to read: check its disk or network folder"):
        pool.decode(tmp_path, SIZE)


@linux
@pytest.mark.slow
def test_slow_pictures_keep_no_place_from_others(pool: DecodePool) -> None:
    slow = exif_jpeg_of_large_segments(30_000_000)

    def decode() -> None:
        with pytest.raises(PictureError):
            pool.decode(slow, SIZE)

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: sum(worker.is_slow for worker in pool._active) == 4)
    assert pool.decode(GOOD, SIZE).shape == (*SIZE, 3)
    assert any(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join()


@linux
def test_a_worker_is_ready_before_a_slow_picture_ends(pool: DecodePool) -> None:
    """A good picture need not wait for its start, which takes ten times as long as decoding it."""
    data = HOSTILE["BMP of runs"]()
    slow = threading.Thread(target=decode_hostile, args=(pool, data))
    pool.decode(GOOD, SIZE)
    slow.start()
    wait_for(lambda: bool(pool._active))
    wait_for(lambda: bool(pool._idle))
    assert slow.is_alive()
    slow.join()


@linux
def test_pictures_that_wait_for_memory_keep_no_place_from_others(
    pool: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = DecodeMemory()
    monkeypatch.setattr(decode_pool, "DECODE_MEMORY", shared)
    large = encode(Image.new("RGB", (2000, 2000)), "PNG")
    monkeypatch.setattr("runtime.preprocess.memory.total_memory", lambda: 300_000_000)
    with shared.reserve(150_000_000):
        waiting = [threading.Thread(target=pool.decode, args=(large, SIZE)) for _ in range(2)]
        for thread in waiting:
            thread.start()
        wait_for(lambda: sum(worker.waits_for_memory for worker in pool._active) == 2)
        good = threading.Thread(target=pool.decode, args=(GOOD, SIZE))
        good.start()
        good.join(PATIENCE)
        assert not good.is_alive() and all(thread.is_alive() for thread in waiting)
    for thread in (*waiting, good):
        thread.join()


def decode_hostile(pool: DecodePool, data: bytes) -> None:
    with suppress(PictureError):
        pool.decode(data, SIZE)


@linux
def test_a_forked_process_has_its_own_workers(pool: DecodePool) -> None:
    expected = pool.decode(GOOD, SIZE)
    if not (child := os.fork()):
        code = 1
        with suppress(PictureError):
            code = int(not np.array_equal(pool.decode(GOOD, SIZE), expected))
        pool.close()
        os._exit(code)
    assert np.array_equal(pool.decode(GOOD, SIZE), expected)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_worker_that_does_not_start_is_an_error_of_the_installation(
    pool: DecodePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(DecoderError, match=r"the decoding process does not start: .*missing"):
        pool.decode(GOOD, SIZE)
    monkeypatch.undo()
    monkeypatch.setattr(decode_pool, "START", "raise SystemExit(7)")
    with pytest.raises(DecoderError, match=r"does not start \(exit code 7\)"):
        pool.decode(GOOD, SIZE)
    monkeypatch.undo()
    assert pool.decode(GOOD, SIZE).shape == (*SIZE, 3)


@pytest.mark.skipif(os.name != "posix", reason="sparse files")
def test_a_file_of_100_gigabytes_is_refused_unread(pool: DecodePool, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.touch()
    os.truncate(path, 100 * 2**30)
    started = time.thread_time()
    for read in (pool.decode, read_picture):
        with pytest.raises(PictureError, match=r"x\.jpg: has 102,400 MiB, and a picture may have \d+"):
            read(path, SIZE)
    os.truncate(path, 100 * 2**20)
    for read in (pool.decode, read_picture):
        with pytest.raises(PictureError, match=r"x\.jpg: is not a picture of a supported format"):
            read(path, SIZE)
    assert time.thread_time() - started < 0.5
