"""Sinks: where --watch saves its results, a CSV file or an SQLite database."""

import csv
import errno
import io
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from io import FileIO
from pathlib import Path

from runtime.common.errors import UserError
from runtime.common.file_lock import exclusive_lock
from runtime.common.text import escape_formulas, unescape_formulas

# Seconds that SQLite waits for another program's lock; SIGTERM is not handled in this time.
LOCK_TIMEOUT = 0.5
IS_LOCKED = "is locked by another program, waiting for it"
WAS_MOVED = "was moved, replaced or edited, opening it again"

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # Excel starts a UTF-8 file with it

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
def open_sink(path: Path | None, on_message: Callable[[str], None] = lambda line: None) -> Iterator[Sink]:
    """Opens or creates the file in the format of its suffix; without a path, nothing is saved.

    One process at a time may have it open. A file that is moved away or replaced is opened again at the next
    row. `on_message` gets a line for that, and one while a database is locked, which is waited for. Raises
    UserError, also from `add`.
    """
    if path is None:
        yield Sink("", set(), lambda row: True)
        return
    if path.suffix not in SINKS:
        raise UserError(f"{path}: results need a file name that ends in {' or '.join(SINKS)}")
    with ExitStack() as stack:
        with _sink_errors(path):
            stack.enter_context(_one_writer(path))
            sink = stack.enter_context(SINKS[path.suffix](path, on_message))

        def add(row: WatchRow) -> bool:
            with _sink_errors(path):
                return sink.add(row)

        yield Sink(sink.name, sink.done, add)


@contextmanager
def _one_writer(path: Path) -> Iterator[None]:
    """Raises UserError while another process writes to this file: each would add a row for each photo."""
    target = Path(os.path.realpath(path))
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(target.with_name(f".{target.name}.lock")))
        except BlockingIOError:
            raise UserError(
                f"{path}: another --watch writes to this file: stop it, or choose another --out"
            ) from None
        yield


@contextmanager
def _sink_errors(path: Path) -> Iterator[None]:
    """Raises errors of the file as UserError."""
    try:
        yield
    except (OSError, sqlite3.Error, csv.Error) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path}: {reason}: results cannot be saved here; choose another --out") from None


def _is_at(path: Path, opened: os.stat_result) -> bool:
    """Whether the opened file is still the one with this name: another program may have moved it."""
    try:
        return os.path.samestat(path.stat(), opened)
    except FileNotFoundError:
        return False


@contextmanager
def _open_csv(path: Path, on_message: Callable[[str], None]) -> Iterator[Sink]:
    """Appends each row with one write."""
    table = _CsvTable(path)
    try:

        def add(row: WatchRow) -> bool:
            if not table.is_in_place():
                on_message(f"{path}: {WAS_MOVED}")
                table.close()
                table.open()
            table.write(map(_csv_value, astuple(row)))
            return True

        yield Sink(str(path), table.done, add)
    finally:
        table.close()


class _CsvTable:
    """The open CSV file. `done` holds the photos of every file that was open under the path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.done: set[PhotoVersion] = set()
        self.open()

    def open(self) -> None:
        self._file = self._path.open("a+b", buffering=0)
        try:
            self._newline = _read_csv(self._file, self._path, self.done)
        except BaseException:
            self._file.close()
            raise
        if not os.fstat(self._file.fileno()).st_size:
            self.write(COLUMNS)

    def close(self) -> None:
        self._file.close()

    def is_in_place(self) -> bool:
        """Whether the path still names this file, and it ends with a complete line.

        Another program may have emptied it, or saved it without the last line ending.
        """
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, end - 1))
        return _is_at(self._path, os.fstat(self._file.fileno())) and self._file.read(1) == b"\n"

    def write(self, values: Iterable[object]) -> None:
        line = _csv_line(values, self._newline)
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, "no space left on device")
        os.fsync(self._file.fileno())


def _read_csv(file: FileIO, path: Path, done: set[PhotoVersion]) -> str:
    """Adds the photos in the file to `done`, and returns its line ending. Raises UserError and csv.Error.

    A row that a power loss cut short is removed; a last row that lacks only the line ending gets it.
    """
    file.seek(0)
    data = file.read()
    complete, newline = _complete_rows(data, path)
    if len(complete) < len(data):
        if complete and _is_row(data[len(complete) :]):
            file.write(newline.encode())
            complete = data
        else:
            file.truncate(len(complete))
    # Decoded in parts: the text of a table of months would take several times the memory of its bytes.
    for row in csv.DictReader(io.TextIOWrapper(io.BytesIO(complete), "utf-8-sig", "replace", newline="")):
        with suppress(TypeError, ValueError):  # a row edited by hand: its photo is classified again
            source = unescape_formulas(str(row["source"]))
            done.add((source, int(row["bytes"]), int(row["modified"])))
    return newline


def _complete_rows(data: bytes, path: Path) -> tuple[bytes, str]:
    """Returns the part of the file before its last line ending, and the line ending. Raises UserError."""
    text = data.removeprefix(BYTE_ORDER_MARK)
    for newline in ("\n", "\r\n"):  # editors and spreadsheets on Windows save the second
        header = _csv_line(COLUMNS, newline)
        if text.startswith(header):
            return data[: data.rfind(b"\n") + 1], newline
        if header.startswith(text):
            return b"", "\n"
    raise UserError(f"{path}: has other columns than {','.join(COLUMNS)}: choose another file for --out")


def _is_row(line: bytes) -> bool:
    """Whether a line without a line ending has all columns."""
    try:
        (row,) = csv.reader([line.decode("utf-8", "replace")], strict=True)
    except (csv.Error, ValueError):
        return False
    return len(row) == len(COLUMNS)


def _csv_value(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()  # true and false, as in JSON
    return escape_formulas(value) if isinstance(value, str) else value


def _csv_line(values: Iterable[object], newline: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator=newline).writerow(values)
    return text.getvalue().encode()


@contextmanager
def _open_sqlite(path: Path, on_message: Callable[[str], None]) -> Iterator[Sink]:
    """Adds each row to the table `answers` in a transaction."""
    names = ", ".join(COLUMNS)
    insert = f"INSERT INTO answers ({names}) VALUES ({', '.join('?' * len(COLUMNS))})"
    with ExitStack() as stack:
        done: set[PhotoVersion] = set()
        database = stack.enter_context(closing(_connect_when_unlocked(path, done, on_message)))
        opened = path.stat()

        def add(row: WatchRow) -> bool:
            nonlocal database, opened
            try:
                if not _is_at(path, opened):
                    new = stack.enter_context(closing(_connect(path, done)))
                    on_message(f"{path}: {WAS_MOVED}")
                    database.close()
                    database, opened = new, path.stat()
                with database:
                    database.execute(insert, astuple(row))
            except sqlite3.OperationalError as error:
                if _is_locked(error):
                    return False
                raise
            return True

        yield Sink(str(path), done, add)


def _connect_when_unlocked(
    path: Path, done: set[PhotoVersion], on_message: Callable[[str], None]
) -> sqlite3.Connection:
    """Waits for another program's lock, with one message."""
    is_first = True
    while True:
        try:
            return _connect(path, done)
        except sqlite3.OperationalError as error:
            if not _is_locked(error):
                raise
        if is_first:
            on_message(f"{path}: {IS_LOCKED}")
        is_first = False
        time.sleep(LOCK_TIMEOUT)


def _connect(path: Path, done: set[PhotoVersion]) -> sqlite3.Connection:
    """Returns the database with a table `answers`, and adds its photos to `done`. Raises sqlite3.Error."""
    database = sqlite3.connect(path, timeout=LOCK_TIMEOUT)
    try:
        database.execute(
            "CREATE TABLE IF NOT EXISTS answers (time TEXT, source TEXT, bytes INTEGER, modified INTEGER, "
            "model TEXT, label TEXT, probability REAL, known INTEGER, error TEXT)"
        )
        database.execute(f"SELECT {', '.join(COLUMNS)} FROM answers LIMIT 0")  # raises if the columns differ
        # A row that was added by hand may lack a source.
        select = "SELECT source, bytes, modified FROM answers WHERE typeof(source) = 'text'"
        done.update(database.execute(select))
    except BaseException:
        database.close()
        raise
    return database


def _is_locked(error: sqlite3.OperationalError) -> bool:
    return "locked" in str(error)


SINKS = {".csv": _open_csv, ".db": _open_sqlite}
