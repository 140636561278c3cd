"""FrameRecorder: saves camera frames as JPEG photos, for --capture and --save-unknown."""

import io
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from PIL import Image

from runtime.camera.camera import Frame
from runtime.common.atomic import atomic_create
from runtime.common.errors import UserError

JPEG_QUALITY = 95
MAX_NAMES = 10  # names to try for one photo


class FrameRecorder:
    """Saves frames in `folder`, at most one per `every` seconds, until the folder holds `max_mb` MB.

    A context manager. At the end, `on_message` gets the number of saved photos and their folder; a folder
    that was created and holds no photo is removed, because training refuses a class without photos.
    Raises UserError if the folder cannot be created.
    """

    def __init__(self, folder: Path, every: float, max_mb: float, on_message: Callable[[str], None]) -> None:
        self._folder, self._every, self._on_message = folder, every, on_message
        self._created = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            used = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        except OSError as error:
            raise UserError(
                f"{folder}: {str(error.strerror).lower()}: choose a folder that you may write to"
            ) from None
        self._bytes_left = max_mb * 1e6 - used
        self._due = 0.0
        self._saved = 0
        self._stopped = False

    def __enter__(self) -> "FrameRecorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._saved:
            with suppress(OSError):  # the folder holds files
                for folder in self._created:
                    folder.rmdir()
        if self._saved or not isinstance(error, Exception):  # else the error is the last line
            self._on_message(f"saved {self._saved} photo{'s' * (self._saved != 1)} in {self._folder}")

    def save(self, frame: Frame) -> None:
        """Saves the frame if one is due and the folder has room for it."""
        if self._stopped or frame.captured_at < self._due:
            return
        self._due = frame.captured_at + self._every
        encoded = io.BytesIO()
        Image.fromarray(frame.pixels).save(encoded, "JPEG", quality=JPEG_QUALITY)
        data = encoded.getbuffer()
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self._stop("has reached --max-mb")
            return
        try:
            self._write(frame.number, data)
        except OSError as error:
            self._stop(str(error.strerror).lower())
        else:
            self._saved += 1

    def _write(self, number: int, data: memoryview) -> None:
        """Saves a photo under a name that no other photo has. Raises OSError.

        A board without a battery starts with an old time, and folders of two cameras may be merged: the time
        and the frame's number do not make a name unique.
        """
        for remaining in reversed(range(MAX_NAMES)):
            now = datetime.now(timezone.utc)
            name = f"{now:%Y%m%dT%H%M%S}_{number:06}_{os.urandom(4).hex()}.jpg"
            try:
                with atomic_create(self._folder / name) as file:
                    file.write(data)
                return
            except FileExistsError:
                if not remaining:
                    raise

    def _stop(self, reason: str) -> None:
        self._stopped = True
        self._on_message(f"{self._folder}: {reason}: no more photos are saved")
