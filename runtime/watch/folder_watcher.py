"""`python -m runtime.classify --watch DIR`: photos are classified as they arrive, answers go into a table."""

import argparse
import csv
import errno
import io
import json
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime, timezone
from math import inf
from pathlib import Path

from runtime.common.errors import PictureError, UserError
from runtime.common.terminal import print_error, print_info, stop_on_sigterm
from runtime.common.text import printable
from runtime.inference.classifier import Classifier
from runtime.inference.model_reloader import open_reloader
from runtime.inference.prediction import Prediction, answer_columns, json_line
from runtime.preprocess.photo_files import SUFFIXES

# Seconds between two looks through the folder: network folders tell nobody what arrives. A look that takes
# long is followed by a pause four times as long, so that a large folder costs a fifth of a core at most.
LOOK_EVERY = 1.0
# A file is read once it is the same in two looks. One that cannot be read may be a copy that stands still:
# it counts as damaged when it has stayed so for as many seconds.
DAMAGED_AFTER = 10.0
LOCKED_FOR = 0.5  # seconds that SQLite waits for another program: SIGTERM is not heard meanwhile


@dataclass(frozen=True)
class WatchedPhoto:
    """A file as a look found it. Another one of the same name is told by its size and time."""

    source: str  # its path below the folder, as it may be printed
    path: Path
    bytes: int
    modified: int  # nanoseconds

    @property
    def version(self) -> tuple[str, int, int]:
        return self.source, self.bytes, self.modified


@dataclass(frozen=True)
class WatchRow:
    """A line of the table: an answer, or an `error`. `known` is empty where the model does not tell."""

    time: str  # UTC
    source: str
    bytes: int
    modified: int
    model: str  # the sha256 of its file
    label: str | None = None
    probability: float | None = None
    known: bool | None = None
    error: str | None = None


COLUMNS = tuple(field.name for field in fields(WatchRow))


def run_watch(arguments: argparse.Namespace) -> int:
    """Classifies what lies in a folder and what arrives there, until SIGTERM. Gives the exit code, 0.

    What the table of --out holds already is not done again. Raises UserError.
    """
    folder = Path(arguments.watch)
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder, or none that this user may enter")
    with stop_on_sigterm(), _table(arguments.out) as table:
        live = open_reloader(arguments, print_info)
        if not arguments.json:
            print(printable(f"{folder} by {live.now()}"), flush=True)
        before: dict[str, WatchedPhoto] = {}
        failing: dict[WatchedPhoto, float] = {}
        away = locked = False
        while True:
            began = time.monotonic()
            there = _look(folder)
            took = time.monotonic() - began
            if (there is None) != away:
                away = there is None
                print_info(f"{folder}: is away, waiting for it" if away else f"{folder}: is back")
            for photo in sorted((there or {}).values(), key=lambda photo: (photo.modified, photo.source)):
                if photo.version in table.done or before.get(photo.source) != photo:
                    continue
                classifier = live.now()
                answer = _classify(classifier, photo)
                since = failing.setdefault(photo, time.monotonic()) if isinstance(answer, str) else -inf
                if time.monotonic() - since < DAMAGED_AFTER:
                    continue
                if not table.add(_row(photo, classifier.model.sha256, answer)):
                    if not locked:
                        print_info(f"{arguments.out}: is locked by another program, waiting for it")
                    locked = True
                    break
                locked = False
                table.done.add(photo.version)
                _tell(answer, photo, classifier.model.contract.labels, arguments.json)
            # What is gone is forgotten, or years of photos would fill the memory. Not when all is gone: so
            # looks a network folder that is not mounted, and its photos will be back.
            if there:
                table.done.intersection_update({photo.version for photo in there.values()})
                failing = {
                    photo: since for photo, since in failing.items() if there.get(photo.source) == photo
                }
            before = there or {}
            time.sleep(max(LOOK_EVERY, 4 * took))


def _look(folder: Path) -> dict[str, WatchedPhoto] | None:
    """The photos below a folder; None when it cannot be looked into."""
    found: dict[str, WatchedPhoto] = {}
    away = False

    def unreadable(error: OSError) -> None:
        nonlocal away
        away |= Path(error.filename) == folder

    for at, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(at)
        below = "" if here == folder else f"{here.relative_to(folder).as_posix()}/"
        for name in names:
            if name.startswith(".") or f".{name.rpartition('.')[2].lower()}" not in SUFFIXES:
                continue
            path = here / name
            try:
                status = path.stat()
            except OSError:  # gone again
                continue
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited on for ever
                continue
            source = printable(below + name)
            modified = min(status.st_mtime_ns, 2**63 - 1)  # SQLite's integers end in the year 2262
            found[source] = WatchedPhoto(source, path, status.st_size, modified)
    return None if away else found


def _classify(classifier: Classifier, photo: WatchedPhoto) -> Prediction | str:
    """The answer, or what is wrong with the photo."""
    try:
        return replace(classifier(photo.path), source=photo.source)
    except PictureError as error:
        return str(error).removeprefix(f"{photo.path}: ")


def _row(photo: WatchedPhoto, model: str, answer: Prediction | str) -> WatchRow:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(answer, str):
        return WatchRow(now, *photo.version, model, error=printable(answer))
    return WatchRow(now, *photo.version, model, answer.label, answer.probability, answer.known)


def _tell(answer: Prediction | str, photo: WatchedPhoto, labels: tuple[str, ...], as_json: bool) -> None:
    if isinstance(answer, str):
        print_error(f"{photo.source}: {answer}")
        if as_json:
            print(json.dumps({"source": photo.source, "error": answer}), flush=True)
    elif as_json:
        print(json_line(answer), flush=True)
    else:
        print("  ".join([photo.source, *answer_columns(labels)(answer, "")]), flush=True)


@dataclass(frozen=True)
class Table:
    """What was answered before, and how to add to it."""

    done: set[tuple[str, int, int]]  # versions of photos
    add: Callable[
        [WatchRow], bool
    ]  # on the disk, whole, when it returns; False while another program locks it


@contextmanager
def _table(name: str | None) -> Iterator[Table]:
    """The table of --out, by its suffix. Raises UserError."""
    if name is None:
        yield Table(set(), lambda row: True)
        return
    path = Path(name)
    if path.suffix not in TABLES:
        raise UserError(f"{path}: the answers go into a file that ends in {' or '.join(TABLES)}")
    with ExitStack() as opened:
        with _telling(path):
            table = opened.enter_context(TABLES[path.suffix](path))

        def add(row: WatchRow) -> bool:
            with _telling(path):
                return table.add(row)

        yield Table(table.done, add)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """What is wrong with a table, as a UserError."""
    try:
        yield
    except (OSError, sqlite3.Error, csv.Error) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path}: {reason}: the answers cannot be kept there") from None


@contextmanager
def _csv_table(path: Path) -> Iterator[Table]:
    """Every row is added by one write. One that a loss of power cut short is removed at the next start."""
    header = _csv_line(COLUMNS)
    with path.open("a+b", buffering=0) as file:
        file.seek(0)
        data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole.startswith(header) and not header.startswith(data):
            raise UserError(
                f"{path}: is a table of other columns than {','.join(COLUMNS)}: give another name"
            )
        if len(whole) < len(data):
            file.truncate(len(whole))
        done = set()
        for fields in csv.DictReader(io.StringIO(whole.decode("utf-8", "replace"))):
            with suppress(TypeError, ValueError):  # edited by hand: the photo is done again
                done.add((str(fields["source"]), int(fields["bytes"]), int(fields["modified"])))
        del data, whole

        def add(values: Iterable[object]) -> bool:
            line = _csv_line(values)
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "no space left on device")
            os.fsync(file.fileno())
            return True

        if not done and file.seek(0, os.SEEK_END) == 0:
            add(COLUMNS)
        yield Table(done, lambda row: add(_csv_value(value) for value in astuple(row)))


def _csv_value(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value  # true and false, as in JSON


def _csv_line(values: Iterable[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


@contextmanager
def _sqlite_table(path: Path) -> Iterator[Table]:
    """The table `answers`. Every row is a transaction."""
    names = ", ".join(COLUMNS)
    with closing(sqlite3.connect(path, timeout=LOCKED_FOR)) as database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS answers (time TEXT, source TEXT, bytes INTEGER, modified INTEGER, "
            "model TEXT, label TEXT, probability REAL, known INTEGER, error TEXT)"
        )
        database.execute(f"SELECT {names} FROM answers LIMIT 0")  # of other columns: an error here
        done = set(database.execute("SELECT source, bytes, modified FROM answers"))
        insert = f"INSERT INTO answers ({names}) VALUES ({', '.join('?' * len(COLUMNS))})"

        def add(row: WatchRow) -> bool:
            try:
                with database:
                    database.execute(insert, astuple(row))
            except sqlite3.OperationalError as error:
                if "locked" in str(error):
                    return False
                raise
            return True

        yield Table(done, add)


TABLES = {".csv": _csv_table, ".db": _sqlite_table}
