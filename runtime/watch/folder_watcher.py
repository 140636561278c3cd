"""FolderWatcher: classifies the photos in a folder as they arrive, and saves each result once.

It scans the folder again and again, because network folders do not send change notifications.
"""

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from runtime.common.errors import PictureError
from runtime.common.text import printable
from runtime.inference.classifier import Classifier
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.prediction import Prediction
from runtime.preprocess.photo_files import SUFFIXES
from runtime.watch.sinks import PhotoVersion, Sink, WatchRow

SCAN_INTERVAL = 1.0  # seconds
MIN_PAUSE = 4  # times the duration of a scan: a large folder then costs at most a fifth of a core
# A photo that cannot be read may be a copy in progress: it counts as damaged after this many seconds without
# a change.
DAMAGED_AFTER = 10.0

MAX_SQLITE_INTEGER = 2**63 - 1  # as nanoseconds, a time in the year 2262


@dataclass(frozen=True)
class WatchedPhoto:
    """A photo as a scan found it."""

    source: str  # its path below the folder, printable
    path: Path
    bytes: int
    modified: int  # nanoseconds

    @property
    def version(self) -> PhotoVersion:
        """Changes when the photo is replaced by another one of the same name."""
        return self.source, self.bytes, self.modified


class FolderWatcher:
    """Classifies the photos below `folder` that `sink` has no result for.

    `show` gets each photo with its prediction or error, `on_message` one line when the folder is missing or
    back, or when the sink is locked.
    """

    def __init__(
        self,
        folder: Path,
        reloader: ReloadingClassifier,
        sink: Sink,
        show: Callable[[WatchedPhoto, Prediction | str], None],
        on_message: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._reloader, self._sink = folder, reloader, sink
        self._show, self._on_message, self._clock = show, on_message, clock
        self._previous: dict[str, WatchedPhoto] = {}  # by source, as the previous scan found them
        self._failing_since: dict[WatchedPhoto, float] = {}
        self._is_missing = self._is_locked = False

    def run(self) -> None:
        """Scans for ever. Raises EngineError, and UserError if a result cannot be saved."""
        while True:
            time.sleep(max(SCAN_INTERVAL, MIN_PAUSE * self.scan()))

    def scan(self) -> float:
        """Classifies the new photos that did not change since the previous scan.

        Returns the seconds that looking through the folder took, without the time to classify.
        """
        started = self._clock()
        found = find_photos(self._folder)
        seconds = self._clock() - started
        if (found is None) != self._is_missing:
            self._is_missing = found is None
            self._on_message(
                f"{self._folder}: is {'missing, waiting for it' if self._is_missing else 'back'}"
            )
        photos = found or {}
        for photo in sorted(photos.values(), key=lambda photo: (photo.modified, photo.source)):
            is_new = photo.version not in self._sink.done
            if is_new and self._previous.get(photo.source) == photo and not self._process(photo):
                break
        if photos:  # an unmounted network folder looks empty; its photos will be back
            self._forget_all_but(photos)
        self._previous = photos
        return seconds

    def _process(self, photo: WatchedPhoto) -> bool:
        """Classifies a photo and saves the result. Returns False while the sink is locked."""
        classifier = self._reloader.current()
        result = _classify(classifier, photo)
        if isinstance(result, str):
            since = self._failing_since.setdefault(photo, self._clock())
            if self._clock() - since < DAMAGED_AFTER:
                return True
        if not self._sink.add(_row(photo, classifier.model.sha256, result)):
            if not self._is_locked:
                self._on_message(f"{self._sink.name}: is locked by another program, waiting for it")
            self._is_locked = True
            return False
        self._is_locked = False
        self._sink.done.add(photo.version)
        self._show(photo, result)
        return True

    def _forget_all_but(self, photos: dict[str, WatchedPhoto]) -> None:
        """Frees the memory of deleted photos, which would otherwise grow over years."""
        self._sink.done.intersection_update({photo.version for photo in photos.values()})
        self._failing_since = {
            photo: since for photo, since in self._failing_since.items() if photos.get(photo.source) == photo
        }


def find_photos(folder: Path) -> dict[str, WatchedPhoto] | None:
    """Returns the photos below a folder by source; None if the folder cannot be read."""
    photos: dict[str, WatchedPhoto] = {}
    errors: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(parent)
        prefix = "" if here == folder else f"{here.relative_to(folder).as_posix()}/"
        for name in names:
            if name.startswith(".") or f".{name.rpartition('.')[2].lower()}" not in SUFFIXES:
                continue
            if photo := _stat_photo(here / name, printable(prefix + name)):
                photos[photo.source] = photo
    return None if any(Path(error.filename) == folder for error in errors) else photos


def _stat_photo(path: Path, source: str) -> WatchedPhoto | None:
    """Returns the photo; None if it is gone already, or no regular file: opening a pipe would block."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return WatchedPhoto(source, path, status.st_size, min(status.st_mtime_ns, MAX_SQLITE_INTEGER))


def _classify(classifier: Classifier, photo: WatchedPhoto) -> Prediction | str:
    """Returns the prediction, or why the photo cannot be read."""
    try:
        return replace(classifier(photo.path), source=photo.source)
    except PictureError as error:
        return str(error).removeprefix(f"{photo.path}: ")


def _row(photo: WatchedPhoto, model: str, result: Prediction | str) -> WatchRow:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(result, str):
        return WatchRow(now, *photo.version, model, error=printable(result))
    return WatchRow(now, *photo.version, model, result.label, result.probability, result.known)
