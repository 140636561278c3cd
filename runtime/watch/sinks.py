"""Sinks: where --watch saves its results, a CSV file or an SQLite database."""

import csv
import errno
import io
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from io import FileIO
from pathlib import Path

from runtime.common.errors import UserError

# Seconds that SQLite waits for another program's lock; SIGTERM is not handled in this time.
LOCK_TIMEOUT = 0.5

PhotoVersion = tuple[str, int, int]  # source, bytes, modified


@dataclass(frozen=True)
class WatchRow:
    """A result: a prediction, or an `error`. The fields are the columns of the CSV file and of the table."""

    time: str  # ISO 8601, UTC
    source: str  # the photo's path below the folder
    bytes: int
    modified: int  # nanoseconds
    model: str  # the sha256 of its file
    label: str | None = None  # the most probable class, also when `known` is False
    probability: float | None = None
    known: bool | None = None  # None if the model does not detect unknown pictures
    error: str | None = None


COLUMNS = tuple(field.name for field in fields(WatchRow))


@dataclass(frozen=True)
class Sink:
    """An open file of results."""

    name: str  # the file's path
    done: set[PhotoVersion]  # the photos that have a result
    add: Callable[[WatchRow], bool]  # durable when it returns True; False while another program holds a lock


@contextmanager
def open_sink(path: Path | None) -> Iterator[Sink]:
    """Opens or creates the file in the format of its suffix; without a path, nothing is saved.

    Raises UserError, also from `add`.
    """
    if path is None:
        yield Sink("", set(), lambda row: True)
        return
    if path.suffix not in SINKS:
        raise UserError(f"{path}: results need a file name that ends in {' or '.join(SINKS)}")
    with ExitStack() as stack:
        with _sink_errors(path):
            sink = stack.enter_context(SINKS[path.suffix](path))

        def add(row: WatchRow) -> bool:
            with _sink_errors(path):
                return sink.add(row)

        yield Sink(sink.name, sink.done, add)


@contextmanager
def _sink_errors(path: Path) -> Iterator[None]:
    """Raises errors of the file as UserError."""
    try:
        yield
    except (OSError, sqlite3.Error, csv.Error) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path}: {reason}: results cannot be saved here; choose another --out") from None


@contextmanager
def _open_csv(path: Path) -> Iterator[Sink]:
    """Appends each row with one write. A row that a power loss cut short is removed at the next start."""
    with path.open("a+b", buffering=0) as file:
        done = _read_csv(file, path)

        def write(values: Iterable[object]) -> None:
            line = _csv_line(values)
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "no space left on device")
            os.fsync(file.fileno())

        def add(row: WatchRow) -> bool:
            write(_csv_value(value) for value in astuple(row))
            return True

        if not os.fstat(file.fileno()).st_size:
            write(COLUMNS)
        yield Sink(str(path), done, add)


def _read_csv(file: FileIO, path: Path) -> set[PhotoVersion]:
    """Returns the photos in the file, and removes an incomplete last row. Raises UserError and csv.Error."""
    header = _csv_line(COLUMNS)
    file.seek(0)
    data = file.read()
    complete = data[: data.rfind(b"\n") + 1]
    if not complete.startswith(header) and not header.startswith(data):
        raise UserError(f"{path}: has other columns than {','.join(COLUMNS)}: choose another file for --out")
    if len(complete) < len(data):
        file.truncate(len(complete))
    versions = set()
    for row in csv.DictReader(io.StringIO(complete.decode("utf-8", "replace"))):
        with suppress(TypeError, ValueError):  # a row edited by hand: its photo is classified again
            versions.add((str(row["source"]), int(row["bytes"]), int(row["modified"])))
    return versions


def _csv_value(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value  # true and false, as in JSON


def _csv_line(values: Iterable[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


@contextmanager
def _open_sqlite(path: Path) -> Iterator[Sink]:
    """Adds each row to the table `answers` in a transaction."""
    names = ", ".join(COLUMNS)
    with closing(sqlite3.connect(path, timeout=LOCK_TIMEOUT)) as database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS answers (time TEXT, source TEXT, bytes INTEGER, modified INTEGER, "
            "model TEXT, label TEXT, probability REAL, known INTEGER, error TEXT)"
        )
        database.execute(f"SELECT {names} FROM answers LIMIT 0")  # raises if the columns differ
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

        yield Sink(str(path), done, add)


SINKS = {".csv": _open_csv, ".db": _open_sqlite}
