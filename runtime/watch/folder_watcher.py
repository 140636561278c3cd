"""FolderWatcher: classifies the photos in a folder as they arrive, and saves each result once.

It scans the folder again and again, because network folders do not send change notifications.
"""

import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from runtime.common.errors import PictureError
from runtime.common.text import printable, printable_name
from runtime.inference.classifier import Classifier
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.prediction import Prediction
from runtime.preprocess.photo_files import walk
from runtime.watch.sinks import IS_LOCKED, PhotoVersion, Sink, WatchRow

# Seconds between two scans of the folder, in which photos are classified.
SCAN_INTERVAL = 1.0
MIN_PAUSE = 4  # times the duration of a scan: in a large folder, scans cost at most a fifth of a core
# A photo that cannot be read may be a copy in progress: it is read again after this many seconds without a
# change, and then counts as damaged.
DAMAGED_AFTER = 10.0
# A slow photo may be hostile. After a photo that takes longer than this, the newest photo is next.
SLOW_SECONDS = 0.5

IS_MISSING = "is missing, waiting for it"
MAX_SHOWN = 200  # characters of a folder in a message
# SQLite's integers: as nanoseconds, times in the years 1677 and 2262. File systems hold other ones.
MIN_SQLITE_INTEGER, MAX_SQLITE_INTEGER = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class WatchedPhoto:
    """A photo as a scan found it."""

    source: str  # its path below the folder, printable; different for each path
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
        self._failed_at: dict[WatchedPhoto, float] = {}  # the time of the first failure
        self._takes_newest = False  # kept between scans: one slow photo can take the time of a whole scan
        self._unreadable: set[str] = set()  # folders, in the previous scan
        self._is_missing = self._is_locked = False

    @property
    def problem(self) -> str:
        """One line on why no photos are classified; "" while they are. Any thread may read it."""
        if self._is_missing:
            return f"{self._folder}: {IS_MISSING}"
        return f"{self._sink.name}: {IS_LOCKED}" if self._is_locked else ""

    def run(self) -> None:
        """Scans for ever. Raises EngineError, and UserError if a result cannot be saved."""
        while True:
            time.sleep(max(0.0, self.scan() - self._clock()))

    def scan(self) -> float:
        """Classifies the new photos that did not change since the previous scan, until the next scan is due.

        Returns that time on the clock. Photos that are left then stay new.
        """
        started = self._clock()
        found, unreadable, empty = find_photos(self._folder)
        now = self._clock()
        due = now + max(SCAN_INTERVAL, MIN_PAUSE * (now - started))
        if (found is None) != self._is_missing:
            self._is_missing = found is None
            self._on_message(f"{self._folder}: {IS_MISSING if self._is_missing else 'is back'}")
        photos = found or {}
        self._report_unreadable(set() if found is None else unreadable)
        for photo in self._in_order(photos):
            before = self._clock()
            if not self._process(photo):
                break
            now = self._clock()
            is_bad = photo in self._failed_at or now - before > SLOW_SECONDS
            self._takes_newest = is_bad and not self._takes_newest
            if now >= due:
                break
        if photos:  # an unmounted network folder looks empty; its photos will be back
            self._forget_all_but(photos, unreadable | empty)
        self._previous = photos
        return due

    def _in_order(self, photos: dict[str, WatchedPhoto]) -> Iterator[WatchedPhoto]:
        """Yields the photos to read: new ones, oldest first, then the ones that failed 10 seconds ago.

        After a photo that cannot be read, or is slow, the newest one is next, so that a card full of such
        photos does not hold up a photo that arrives after them.
        """
        waiting = [
            photo
            for photo in sorted(photos.values(), key=lambda photo: (photo.modified, photo.source))
            if photo.version not in self._sink.done and self._previous.get(photo.source) == photo
        ]
        new = deque(photo for photo in waiting if photo not in self._failed_at)
        while new:
            yield new.pop() if self._takes_newest else new.popleft()
        now = self._clock()
        for photo in waiting:
            if now - self._failed_at.get(photo, now) >= DAMAGED_AFTER:
                yield photo

    def _process(self, photo: WatchedPhoto) -> bool:
        """Classifies a photo and saves the result. Returns False while the sink is locked."""
        classifier = self._reloader.current()
        result = _classify(classifier, photo)
        if isinstance(result, str):
            failed_at = self._failed_at.setdefault(photo, self._clock())
            if self._clock() - failed_at < DAMAGED_AFTER:
                return True
        if not self._sink.add(_row(photo, classifier.model.sha256, result)):
            if not self._is_locked:
                self._on_message(f"{self._sink.name}: {IS_LOCKED}")
            self._is_locked = True
            return False
        self._is_locked = False
        self._sink.done.add(photo.version)
        self._show(photo, result)
        return True

    def _report_unreadable(self, folders: set[str]) -> None:
        for folder in sorted(folders - self._unreadable):
            shown = folder if len(folder) <= MAX_SHOWN else f"{folder[:MAX_SHOWN]}…"
            self._on_message(f"{self._folder}/{shown}: cannot be read, trying again: check its permissions")
        self._unreadable = folders

    def _forget_all_but(self, photos: dict[str, WatchedPhoto], may_return: set[str]) -> None:
        """Frees the memory of deleted photos, which would otherwise grow over years.

        Sources that begin with a part in `may_return` stay: their folder may be mounted again.
        """
        present, hidden = {photo.version for photo in photos.values()}, tuple(may_return)
        gone = {version for version in self._sink.done - present if not version[0].startswith(hidden)}
        self._sink.done.difference_update(gone)
        self._failed_at = {
            photo: time for photo, time in self._failed_at.items() if photos.get(photo.source) == photo
        }


def find_photos(folder: Path) -> tuple[dict[str, WatchedPhoto] | None, set[str], set[str]]:
    """Returns the photos below a folder by source, and how the sources in unreadable and empty folders begin.

    None instead of the photos if `folder` itself cannot be read.
    """
    photos: dict[str, WatchedPhoto] = {}
    errors: list[OSError] = []
    without_photos, outer = list[Path](), set[Path]()  # folders; `outer` ones hold others
    for parent, names in walk(folder, errors.append):
        prefix = _prefix(folder, parent)
        outer.add(Path(parent).parent)
        if not names:
            without_photos.append(Path(parent))
        for name in names:
            if photo := stat_photo(Path(parent, name), printable_name(prefix + name)):
                photos[photo.source] = photo
    unreadable = {printable_name(_prefix(folder, error.filename)) for error in errors}
    empty = {printable_name(_prefix(folder, str(path))) for path in without_photos if path not in outer}
    return None if "" in unreadable else photos, unreadable, empty


def _prefix(folder: Path, parent: str) -> str:
    """How the sources of the photos in `parent` begin; "" for the folder itself."""
    return "" if Path(parent) == folder else f"{Path(parent).relative_to(folder).as_posix()}/"


def stat_photo(path: Path, source: str) -> WatchedPhoto | None:
    """Returns the photo; None if it is gone already, or no regular file: opening a pipe would block."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    modified = max(MIN_SQLITE_INTEGER, min(status.st_mtime_ns, MAX_SQLITE_INTEGER))
    return WatchedPhoto(source, path, status.st_size, modified)


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
