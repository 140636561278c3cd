"""PhotoRecorder: saves frames and photos as JPEG files, for --capture, --save-unknown and --save-all."""

import io
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.common.atomic import atomic_create
from runtime.common.errors import UserError
from runtime.common.text import pluralize

JPEG_QUALITY = 95
MAX_NAMES = 10  # names to try for one photo
RETRY_DELAY = 60.0  # seconds without a try after a photo could not be written
LARGEST_KEY = "g"  # above every key: keys are hexadecimal

SAMPLE = "sample_"  # begins the names of a sample: it deletes no photo of the other flags
_SAMPLE_NAME = re.compile(SAMPLE + r"\d{8}T\d{6}_\d{6,}_([0-9a-f]{8})\.jpg", re.ASCII)

GetPixels = Callable[[], NDArray[np.uint8]]  # [h, w, 3], RGB; called for saved pictures only


class PhotoRecorder:
    """Saves pictures in `folder`, at most one frame per `every` seconds, until the folder holds `max_mb` MB.

    With `sample`, the recorder continues when the folder is full, which then keeps a uniform random sample
    of all pictures so far. Each name ends in a random key, and the pictures with the smallest keys stay
    (bottom-k sampling, Cohen and Kaplan, 2007), so that a sample continues after a restart.

    A context manager; any thread may call `save`. At the end, `on_message` gets the folder and the number of
    saved photos, or of the photos in the sample; a folder that was created and holds no photo is removed,
    because training refuses a class without photos. Raises UserError if the folder cannot be created.
    """

    def __init__(
        self,
        folder: Path,
        every: float,
        max_mb: float,
        on_message: Callable[[str], None],
        *,
        sample: bool = False,
    ) -> None:
        self._folder, self._every, self._on_message = folder, every, on_message
        self._created = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        except OSError as error:
            raise UserError(
                f"{folder}: {str(error.strerror).lower()}: choose a folder that you may write to"
            ) from None
        self._bytes_left = max_mb * 1e6 - sum(sizes.values())
        # The photos that a sample may replace, by key; other files stay.
        self._sample = _by_key(sizes) if sample else None
        self._first_rejected = LARGEST_KEY  # the smallest key that the sample does not hold
        self._due = 0.0
        self._saved = 0
        self._stopped = self._is_failing = False
        self._retry_at = 0.0  # time.monotonic() seconds
        self._lock = Lock()

    def __enter__(self) -> "PhotoRecorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._saved:
            with suppress(OSError):  # the folder holds files
                for folder in self._created:
                    folder.rmdir()
        if self._saved or not isinstance(error, Exception):  # else the error is the last line
            self._on_message(self._summary())

    def _summary(self) -> str:
        if self._sample is None:
            return f"saved {pluralize(self._saved, 'photo')} in {self._folder}"
        return f"saved a sample of {pluralize(len(self._sample), 'photo')} in {self._folder}"

    def save(self, get_pixels: GetPixels, number: int, captured_at: float | None = None) -> bool:
        """Saves a picture if it is due and the folder has room for it. `number` becomes part of its name.

        `captured_at` is a frame's time in seconds; a photo has none, and is always due. Returns False if the
        picture cannot be written, which is tried again RETRY_DELAY later with another one.
        """
        with self._lock:
            if time.monotonic() < self._retry_at:
                return False
            if self._stopped or not self._is_due(captured_at):
                return True
            key = os.urandom(4).hex()
            if key >= self._first_rejected:
                return True
        try:
            data = _encode(get_pixels())  # without the lock: a large photo takes seconds
        except UserError:  # a photo that is gone or damaged by now
            return True
        with self._lock:
            if self._stopped or key >= self._first_rejected or not self._make_room(len(data), key):
                return True
            try:
                self._write(number, key, data)
            except OSError as error:
                self._bytes_left += len(data)
                self._report_failure(str(error.strerror).lower())
                return False
            self._report_success()
            return True

    def _is_due(self, captured_at: float | None) -> bool:
        if captured_at is None:
            return True
        if captured_at < self._due:
            return False
        self._due = captured_at + self._every
        return True

    def _make_room(self, size: int, key: str) -> bool:
        """Reserves `size` bytes for a picture; returns False if it has no place.

        A sample removes others, unless the picture alone is larger than the sample may be.
        """
        if self._sample and size > self._bytes_left + sum(length for _, length in self._sample.values()):
            return False
        while self._bytes_left < size:
            largest = max(self._sample, default="") if self._sample is not None else ""
            if self._sample is None or not largest:
                self._stop("has reached --max-mb")
                return False
            if largest <= key:
                self._first_rejected = key
                return False
            name, freed = self._sample.pop(largest)
            with suppress(OSError):  # removed by the user meanwhile
                (self._folder / name).unlink()
            self._bytes_left += freed
            self._first_rejected = largest
        self._bytes_left -= size
        return True

    def _write(self, number: int, key: str, data: memoryview) -> None:
        """Saves a photo under a name that no other photo has. Raises OSError.

        A board without a battery starts with an old time, and folders of two cameras may be merged: the time
        and the frame's number do not make a name unique.
        """
        for remaining in reversed(range(MAX_NAMES)):
            now = datetime.now(timezone.utc)
            prefix = SAMPLE if self._sample is not None else ""
            name = f"{prefix}{now:%Y%m%dT%H%M%S}_{number:06}_{key}.jpg"
            try:
                with atomic_create(self._folder / name) as file:
                    file.write(data)
            except FileExistsError:
                if not remaining:
                    raise
                key = os.urandom(4).hex()
            else:
                if self._sample is not None:
                    self._sample[key] = name, len(data)
                return

    def _report_failure(self, reason: str) -> None:
        self._retry_at = time.monotonic() + RETRY_DELAY
        if not self._is_failing:
            self._on_message(f"{self._folder}: {reason}: photos are not saved, trying again every minute")
        self._is_failing = True

    def _report_success(self) -> None:
        self._saved += 1
        if self._is_failing:
            self._on_message(f"{self._folder}: photos are saved again")
        self._is_failing = False

    def _stop(self, reason: str) -> None:
        self._stopped = True
        self._on_message(f"{self._folder}: {reason}: no more photos are saved")


def _encode(pixels: NDArray[np.uint8]) -> memoryview:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getbuffer()


def _by_key(sizes: dict[str, int]) -> dict[str, tuple[str, int]]:
    """Returns the names and sizes of a sample's photos by their keys."""
    found = ((_SAMPLE_NAME.fullmatch(name), size) for name, size in sizes.items())
    return {match[1]: (match[0], size) for match, size in found if match}
