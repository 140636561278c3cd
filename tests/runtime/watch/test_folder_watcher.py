"""A watched folder: photos that arrive whole, in pieces, damaged, and a table that survives."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from runtime.classify import main
from runtime.watch.folder_watcher import COLUMNS
from tests.helpers import ROOT, wait_for

CODE = (
    "import sys; from runtime import watch, classify; "
    "watch.LOOK_EVERY, watch.DAMAGED_AFTER = {pause}, 1.0; sys.exit(classify.main())"
)


class Watcher:
    """The command as a process, with shorter pauses."""

    def __init__(self, *arguments: object, pause: float = 0.05) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE.format(pause=pause), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@contextmanager
def watching(*arguments: object, pause: float = 0.05) -> Iterator[Watcher]:
    watcher = Watcher(*arguments, pause=pause)
    try:
        yield watcher
    finally:
        watcher.process.kill()
        watcher.process.communicate()


def rows_of(path: Path) -> list[dict[str, str]]:
    """Whole rows, as the reader of a table would see them."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row.values()]
    with sqlite3.connect(path) as database:
        found = database.execute(f"SELECT {', '.join(COLUMNS)} FROM answers").fetchall()
    texts = [["" if value is None else str(value) for value in row] for row in found]
    return [dict(zip(COLUMNS, row, strict=True)) for row in texts]


def has(path: Path, number: int) -> Callable[[], bool]:
    def now() -> bool:
        try:
            return path.exists() and len(rows_of(path)) >= number
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            return False  # it is about to be made

    return now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "arriving"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", ["results.csv", "results.db"])
def test_photos_are_answered_as_they_arrive_and_once(
    name: str, colours: Path, photos: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / name
    shutil.copy(photos / "red.jpg", folder / "there, already.jpg")
    with watching("--watch", folder, "--out", out, "--model", colours) as watcher:
        wait_for(has(out, 1), 30)
        (folder / "notes.txt").write_text("no picture")
        (folder / ".hidden.jpg").write_bytes(b"")
        (folder / "below").mkdir()
        shutil.copy(photos / "green.jpg", folder / "below" / "arrived.jpg")
        wait_for(has(out, 2), 30)
        code, printed, err = watcher.end()
    assert (code, err) == (0, "") and "there, already.jpg  红" in printed
    first, second = rows_of(out)
    assert tuple(first) == COLUMNS and len(first["model"]) == 64
    assert [first["source"], first["label"], first["error"]] == ["there, already.jpg", "红", ""]
    assert [second["source"], second["label"]] == ["below/arrived.jpg", "grün"]
    assert float(second["probability"]) > 0.9 and second["known"] == ""
    # Begun again, it does what is new, and what has changed, and that alone.
    shutil.copy(photos / "blue.png", folder / "new.png")
    shutil.copy(photos / "blue.png", folder / "there, already.jpg")
    with watching("--watch", folder, "--out", out, "--model", colours) as watcher:
        wait_for(has(out, 4), 30)
        time.sleep(0.5)
        assert watcher.end()[0] == 0
    assert sorted(row["source"] for row in rows_of(out)[2:]) == ["new.png", "there, already.jpg"]
    assert [row["label"] for row in rows_of(out)[2:]] == ["blau", "blau"]


def test_a_file_that_grows_is_waited_for(colours: Path, photos: Path, folder: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "results.csv", (photos / "red.jpg").read_bytes()
    with watching("--watch", folder, "--out", out, "--model", colours) as watcher:
        with (folder / "slow.jpg").open("wb", buffering=0) as file:
            for at in range(0, len(data), len(data) // 8):
                file.write(data[at : at + len(data) // 8])
                time.sleep(0.2)  # it stays the same over several looks, and is damaged at each
        wait_for(has(out, 1), 30)
        code, _, err = watcher.end()
    assert (code, err) == (0, "")
    assert [(row["label"], row["error"]) for row in rows_of(out)] == [("红", "")]


def test_a_file_is_not_read_before_it_is_at_rest(
    colours: Path, photos: Path, folder: Path, tmp_path: Path
) -> None:
    """Even one that is a picture at every moment."""
    out = tmp_path / "results.csv"
    with watching("--watch", folder, "--out", out, "--model", colours, pause=0.2):
        with (folder / "growing.jpg").open("wb", buffering=0) as file:
            file.write((photos / "red.jpg").read_bytes())
            until = time.monotonic() + 2
            while time.monotonic() < until:
                file.write(b"more")
                time.sleep(0.01)
        file_size = (folder / "growing.jpg").stat().st_size
        wait_for(lambda: out.exists() and any(row["bytes"] == str(file_size) for row in rows_of(out)), 30)
    assert len(rows_of(out)) <= 2  # of ten looks


def test_a_damaged_file_is_a_row_and_a_line(
    knowing: Path, photos: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.csv"
    (folder / "cut\n=1.jpg").write_bytes((photos / "red.jpg").read_bytes()[:200])
    shutil.copy(photos / "red.jpg", folder / "whole.jpg")
    with watching("--watch", folder, "--out", out, "--model", knowing, "--json") as watcher:
        wait_for(has(out, 2), 30)
        time.sleep(0.2)  # told after it is kept
        code, printed, err = watcher.end()
    whole, cut = rows_of(out)
    assert code == 0 and whole["known"] == "true" and cut["label"] == ""
    assert cut["source"] == "cut\\n=1.jpg" and "damaged" in cut["error"]
    (line,) = err.splitlines()
    assert line.startswith("error: cut\\n=1.jpg: is damaged")
    assert '"error": "is damaged' in printed.splitlines()[1] and len(printed.splitlines()) == 2


@pytest.mark.parametrize("name", ["results.csv", "results.db"])
def test_killed_in_the_middle_it_goes_on(
    name: str, colours: Path, photos: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / name
    for number in range(60):
        shutil.copy(photos / "red.jpg", folder / f"{number}.jpg")
    for many in (5, 25):
        with watching("--watch", folder, "--out", out, "--model", colours) as watcher:
            wait_for(has(out, many), 30)
            assert watcher.end(signal.SIGKILL)[0] == -signal.SIGKILL
    if name == "results.csv":  # and a loss of power cut the last row short
        out.write_bytes(out.read_bytes()[:-30])
    with watching("--watch", folder, "--out", out, "--model", colours):
        wait_for(has(out, 60), 30)
    sources = [row["source"] for row in rows_of(out)]
    assert sorted(sources) == sorted(f"{number}.jpg" for number in range(60))
    assert {row["label"] for row in rows_of(out)} == {"红"}


def test_a_folder_that_is_away_is_waited_for(
    colours: Path, photos: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.csv"
    shutil.copy(photos / "red.jpg", folder / "1.jpg")
    with watching("--watch", folder, "--out", out, "--model", colours) as watcher:
        wait_for(has(out, 1), 30)
        folder.rename(tmp_path / "elsewhere")
        time.sleep(0.5)
        (tmp_path / "elsewhere").rename(folder)
        shutil.copy(photos / "red.jpg", folder / "2.jpg")
        wait_for(has(out, 2), 30)
        time.sleep(0.3)
        code, _, err = watcher.end()
    assert code == 0 and err.splitlines() == [f"{folder}: is away, waiting for it", f"{folder}: is back"]
    assert [row["source"] for row in rows_of(out)] == ["1.jpg", "2.jpg"]


def test_what_is_gone_is_forgotten(colours: Path, photos: Path, folder: Path, tmp_path: Path) -> None:
    """Or years of photos would fill the memory. So one that comes back is answered again."""
    out = tmp_path / "results.csv"
    shutil.copy(photos / "red.jpg", folder / "1.jpg")
    shutil.copy(photos / "red.jpg", folder / "2.jpg")
    with watching("--watch", folder, "--out", out, "--model", colours):
        wait_for(has(out, 2), 30)
        (folder / "1.jpg").rename(tmp_path / "1.jpg")
        time.sleep(0.5)
        (tmp_path / "1.jpg").rename(folder / "1.jpg")
        wait_for(has(out, 3), 30)


def test_a_folder_that_is_not_mounted_is_not_forgotten(
    colours: Path, photos: Path, folder: Path, tmp_path: Path
) -> None:
    """It is there, and empty."""
    out = tmp_path / "results.csv"
    shutil.copy(photos / "red.jpg", folder / "1.jpg")
    with watching("--watch", folder, "--out", out, "--model", colours):
        wait_for(has(out, 1), 30)
        (folder / "1.jpg").rename(tmp_path / "1.jpg")
        time.sleep(0.5)
        (tmp_path / "1.jpg").rename(folder / "1.jpg")
        shutil.copy(photos / "green.jpg", folder / "2.jpg")
        wait_for(has(out, 2), 30)
        time.sleep(0.3)
    assert [row["source"] for row in rows_of(out)] == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("results.txt", "ends in .csv or .db"),
        ("none/results.csv", "no such file or directory"),
        ("none/results.db", "unable to open database file"),
        ("other.csv", "is a table of other columns"),
        ("other.db", "file is not a database"),
        ("huge.csv", "field larger than field limit"),
    ],
)
def test_a_table_that_cannot_be_kept_is_told_at_once(
    out: str, reason: str, colours: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.csv").write_text("name,price\nrose,1")
    (tmp_path / "huge.csv").write_text(f"{','.join(COLUMNS)}\n{'x' * 200_000}\n")
    (tmp_path / "other.db").write_text("name,price\nrose,1\n" * 100)
    assert main(["--watch", str(folder), "--out", str(tmp_path / out), "--model", str(colours)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / out}: ") and reason in line
    assert (tmp_path / "other.csv").read_text() == "name,price\nrose,1"


def test_no_folder(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--watch", str(tmp_path / "none"), "--model", str(colours)]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path / 'none'}: no such folder, or none that this user may enter\n"
    )


@pytest.mark.skipif(os.name != "posix", reason="pipes with names")
def test_what_is_no_file_and_a_time_far_ahead_stop_nothing(
    colours: Path, photos: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.db"
    os.mkfifo(folder / "a.jpg")
    shutil.copy(photos / "red.jpg", folder / "b.jpg")
    os.utime(folder / "b.jpg", (10_413_792_000,) * 2)  # the year 2300
    with watching("--watch", folder, "--out", out, "--model", colours) as watcher:
        wait_for(has(out, 1), 30)
        assert watcher.end()[0::2] == (0, "")
    assert [(row["source"], row["label"]) for row in rows_of(out)] == [("b.jpg", "红")]


def test_a_locked_table_is_waited_for(colours: Path, photos: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.db"
    with watching("--watch", folder, "--out", out, "--model", colours) as watcher:
        wait_for(has(out, 0), 30)
        with closing(sqlite3.connect(out)) as other:
            other.execute("BEGIN IMMEDIATE")
            shutil.copy(photos / "red.jpg", folder / "a.jpg")
            shutil.copy(photos / "green.jpg", folder / "b.jpg")
            assert watcher.process.stderr
            said = watcher.process.stderr.readline()
            time.sleep(1)
        wait_for(has(out, 2), 30)
        code, _, err = watcher.end()
    assert said == f"{out}: is locked by another program, waiting for it\n" and (code, err) == (0, "")
    assert [row["source"] for row in rows_of(out)] == ["a.jpg", "b.jpg"]


def test_a_reader_that_leaves_is_not_the_tables_fault(
    colours: Path, photos: Path, folder: Path, tmp_path: Path
) -> None:
    with watching("--watch", folder, "--out", tmp_path / "results.csv", "--model", colours) as watcher:
        assert watcher.process.stdout and watcher.process.stderr
        watcher.process.stdout.readline()
        watcher.process.stdout.close()
        shutil.copy(photos / "red.jpg", folder / "a.jpg")
        assert watcher.process.wait(timeout=30) == 141
        assert watcher.process.stderr.read() == ""
        watcher.process.stdout = None
