"""FolderWatcher, scan by scan with a clock that the test moves. test_watch_cli.py runs the command."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import sqlite3
import stat
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.classify import main
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.prediction import Prediction
from runtime.watch import sinks
from runtime.watch.folder_watcher import DAMAGED_AFTER, FolderWatcher, WatchedPhoto, stat_photo
from runtime.watch.sinks import COLUMNS, open_sink
from tests.helpers import nested_folders

Capture = pytest.CaptureFixture[str]
NAMES = pytest.mark.parametrize("name", ["results.csv", "results.db"])


@dataclass
class Watch:
    """A watcher whose time the test moves."""

    folder: Path
    out: Path
    reloader: ReloadingClassifier
    now: float = 0.0
    reading: float = 0.0  # seconds that pass with each look at the clock
    shown: list[tuple[str, str]] = field(default_factory=list)  # source, answer or error
    messages: list[str] = field(default_factory=list)

    @contextmanager
    def open(self) -> Iterator[Callable[..., None]]:
        """Starts the watcher; gives a function that scans `times` times, `seconds` apart."""
        with open_sink(self.out) as sink:
            watcher = FolderWatcher(
                self.folder, self.reloader, sink, self._show, self.messages.append, self._clock
            )

            def scan(times: int = 2, seconds: float = 1.0) -> None:
                for _ in range(times):
                    watcher.scan()
                    self.now += seconds

            yield scan

    def rows(self) -> list[dict[str, str]]:
        return rows_of(self.out)

    def results(self) -> list[tuple[str, str]]:
        return [(row["source"], row["label"]) for row in self.rows()]

    def _clock(self) -> float:
        self.now += self.reading
        return self.now

    def _show(self, photo: WatchedPhoto, result: Prediction | str) -> None:
        self.shown.append((photo.source, result if isinstance(result, str) else result.answer))


def rows_of(path: Path) -> list[dict[str, str]]:
    """The complete rows, as a reader of the table sees them."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row.values()]
    with closing(sqlite3.connect(path)) as database:
        found = database.execute(f"SELECT {', '.join(COLUMNS)} FROM answers").fetchall()
    texts = [["" if value is None else str(value) for value in row] for row in found]
    return [dict(zip(COLUMNS, row, strict=True)) for row in texts]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "arriving"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def reloader(colours: Path) -> ReloadingClassifier:
    return ReloadingClassifier(colours)


@pytest.fixture
def watch(folder: Path, reloader: ReloadingClassifier, tmp_path: Path) -> Watch:
    return Watch(folder, tmp_path / "results.csv", reloader)


@NAMES
def test_a_photo_is_classified_when_it_arrives_and_once(name: str, watch: Watch, photos: Path) -> None:
    watch.out = watch.out.with_name(name)
    shutil.copy(photos / "red.jpg", watch.folder / "there, already.jpg")
    with watch.open() as scan:
        scan(3)
        (watch.folder / "notes.txt").write_text("no picture")
        (watch.folder / ".hidden.jpg").write_bytes(b"")
        (watch.folder / "below").mkdir()
        shutil.copy(photos / "green.jpg", watch.folder / "below" / "arrived.jpg")
        scan(3)
    first, second = watch.rows()
    assert tuple(first) == COLUMNS and len(first["model"]) == 64
    assert [first["source"], first["label"], first["error"]] == ["there, already.jpg", "红", ""]
    assert [second["source"], second["label"], second["known"]] == ["below/arrived.jpg", "grün", ""]
    assert float(second["probability"]) > 0.9 and watch.messages == []
    assert watch.shown == [("there, already.jpg", "红"), ("below/arrived.jpg", "grün")]


@NAMES
def test_a_restart_classifies_only_new_and_changed_photos(name: str, watch: Watch, photos: Path) -> None:
    watch.out = watch.out.with_name(name)
    for photo in ("same.jpg", "changed.jpg"):
        shutil.copy(photos / "red.jpg", watch.folder / photo)
    with watch.open() as scan:
        scan()
    shutil.copy(photos / "blue.png", watch.folder / "new.png")
    shutil.copy(photos / "blue.png", watch.folder / "changed.jpg")
    with watch.open() as scan:
        scan(3)
    assert sorted(watch.results()[2:]) == [("changed.jpg", "blau"), ("new.png", "blau")]


def test_a_photo_is_read_when_two_scans_find_it_unchanged(watch: Watch, photos: Path) -> None:
    """Also a photo that can be read at every moment."""
    photo = watch.folder / "growing.jpg"
    shutil.copy(photos / "red.jpg", photo)
    with watch.open() as scan:
        for _ in range(5):
            scan(1)
            with photo.open("ab") as file:
                file.write(b"more")
        assert watch.rows() == []
        scan(2)
    assert [row["bytes"] for row in watch.rows()] == [str(photo.stat().st_size)]


def test_a_copy_that_stands_still_counts_as_damaged_only_after_ten_seconds(
    watch: Watch, photos: Path
) -> None:
    photo, data = watch.folder / "slow.jpg", (photos / "red.jpg").read_bytes()
    with watch.open() as scan:
        for size in (len(data) // 4, len(data) // 2):
            photo.write_bytes(data[:size])
            scan(
                int(DAMAGED_AFTER)
            )  # unchanged, but for less than the limit: the first scan does not read it
        photo.write_bytes(data)
        scan()
        assert watch.results() == [("slow.jpg", "红")]
        photo.write_bytes(data[: len(data) // 2])
        scan(int(DAMAGED_AFTER) + 2)
    assert "damaged" in watch.rows()[1]["error"] and watch.rows()[1]["label"] == ""
    assert watch.shown[1][0] == "slow.jpg" and "damaged" in watch.shown[1][1]


@NAMES
def test_file_names_that_print_alike_get_a_row_each(name: str, watch: Watch, photos: Path) -> None:
    """A line break and the two characters of its escape, and a byte that is no UTF-8."""
    watch.out = watch.out.with_name(name)
    names = [
        "a\n.jpg",
        "a\\n.jpg",
        "a\\\\n.jpg",
        "\udcff.jpg",
        "\\udcff.jpg",
        "e\u0301.jpg",
        "\xe9.jpg",
        "=1.jpg",
    ]
    for photo in names:
        shutil.copy(photos / "red.jpg", watch.folder / photo)
    for _ in range(2):
        with watch.open() as scan:
            scan()
    assert len(watch.rows()) == len(set(watch.results())) == len(names)


def test_damaged_photos_do_not_hold_up_a_good_one(watch: Watch, photos: Path) -> None:
    """Each photo takes some time; the good one is the newest, then the oldest."""
    for number in range(300):
        (watch.folder / f"{number}.jpg").write_bytes(b"damaged")
        os.utime(watch.folder / f"{number}.jpg", (number, number))
    watch.reading = 0.1
    with watch.open() as scan:
        scan(4)
        for photo, modified in (("new.jpg", 1000), ("old.jpg", 0)):
            shutil.copy(photos / "red.jpg", watch.folder / photo)
            os.utime(watch.folder / photo, (modified, modified))
            arrived = watch.now
            scan(3)
            assert (photo, "红") in watch.shown and watch.now - arrived < 10
        watch.reading = 0.01
        scan(100)
    assert len(watch.rows()) == 302


def test_a_photo_beside_3000_nested_folders_is_found(watch: Watch, photos: Path) -> None:
    shutil.copy(photos / "red.jpg", watch.folder / "a.jpg")
    with nested_folders(watch.folder), watch.open() as scan:
        scan()
    assert watch.results() == [("a.jpg", "红")]
    (message,) = watch.messages  # the deepest folders have a path that is too long
    assert "cannot be read" in message and len(message) < 600


def test_a_missing_folder_is_waited_for(watch: Watch, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "red.jpg", watch.folder / "1.jpg")
    with watch.open() as scan:
        scan()
        watch.folder.rename(tmp_path / "elsewhere")
        scan(3)
        (tmp_path / "elsewhere").rename(watch.folder)
        shutil.copy(photos / "red.jpg", watch.folder / "2.jpg")
        scan(3)
    assert [str(watch.folder) in line for line in watch.messages] == [True, True]
    assert "missing" in watch.messages[0] and "back" in watch.messages[1]
    assert watch.results() == [("1.jpg", "红"), ("2.jpg", "红")]


def test_a_deleted_photo_is_forgotten(watch: Watch, photos: Path, tmp_path: Path) -> None:
    """Memory then does not grow over years; a photo that returns is classified again."""
    for name in ("1.jpg", "2.jpg"):
        shutil.copy(photos / "red.jpg", watch.folder / name)
    with watch.open() as scan:
        scan()
        (watch.folder / "1.jpg").rename(tmp_path / "1.jpg")
        scan()
        (tmp_path / "1.jpg").rename(watch.folder / "1.jpg")
        scan()
    assert [source for source, _ in watch.results()] == ["1.jpg", "2.jpg", "1.jpg"]


def test_photos_of_an_empty_folder_are_not_forgotten(watch: Watch, photos: Path, tmp_path: Path) -> None:
    """A network folder that is not mounted looks empty."""
    shutil.copy(photos / "red.jpg", watch.folder / "1.jpg")
    with watch.open() as scan:
        scan()
        (watch.folder / "1.jpg").rename(tmp_path / "1.jpg")
        scan()
        (tmp_path / "1.jpg").rename(watch.folder / "1.jpg")
        shutil.copy(photos / "green.jpg", watch.folder / "2.jpg")
        scan()
    assert [source for source, _ in watch.results()] == ["1.jpg", "2.jpg"]


def test_photos_of_an_empty_folder_below_are_not_forgotten(
    watch: Watch, photos: Path, tmp_path: Path
) -> None:
    """Such as the mount point of a card or of a share, whose photos are in folders."""
    for name in ("1.jpg", "card/day/2.jpg", "kept/3.jpg"):
        (watch.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / "red.jpg", watch.folder / name)
    with watch.open() as scan:
        scan()
        (watch.folder / "card" / "day").rename(tmp_path / "day")
        (watch.folder / "kept").rename(tmp_path / "kept")  # the folder itself: its photos are deleted
        scan()
        (tmp_path / "day").rename(watch.folder / "card" / "day")
        (tmp_path / "kept").rename(watch.folder / "kept")
        scan()
    found = [source for source, _ in watch.results()]
    assert sorted(found) == ["1.jpg", "card/day/2.jpg", "kept/3.jpg", "kept/3.jpg"]


def test_photos_of_an_unreadable_folder_are_not_forgotten(
    watch: Watch, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network share or a card reader may fail for one scan."""
    for name in ("a/1.jpg", "b/2.jpg"):
        (watch.folder / name).parent.mkdir()
        shutil.copy(photos / "red.jpg", watch.folder / name)
    scandir = os.scandir

    def fail_for_b(path: str | Path) -> Any:
        if Path(path).name == "b":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return scandir(path)

    with watch.open() as scan:
        scan()
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", fail_for_b)
            scan()
            scan()
        scan()
    assert watch.results() == [("a/1.jpg", "红"), ("b/2.jpg", "红")]
    (message,) = watch.messages
    assert str(watch.folder / "b") in message and "cannot be read" in message


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
@NAMES
def test_a_pipe_and_a_time_far_ahead_stop_nothing(name: str, watch: Watch, photos: Path) -> None:
    watch.out = watch.out.with_name(name)
    os.mkfifo(watch.folder / "a.jpg")
    shutil.copy(photos / "red.jpg", watch.folder / "b.jpg")
    os.utime(watch.folder / "b.jpg", (10_413_792_000,) * 2)  # the year 2300
    with watch.open() as scan:
        scan()
    assert watch.results() == [("b.jpg", "红")]


def test_a_time_long_ago_fits_into_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the year 1600 on a memory disk."""
    status = SimpleNamespace(st_mode=stat.S_IFREG, st_size=1, st_mtime_ns=-(10**19))
    monkeypatch.setattr(Path, "stat", lambda path: status)
    photo = stat_photo(Path("a.jpg"), "a.jpg")
    assert photo is not None
    with closing(sqlite3.connect(":memory:")) as database:
        assert database.execute("SELECT ?", (photo.modified,)).fetchone() == (photo.modified,)


def test_a_row_that_was_added_by_hand_stops_nothing(watch: Watch, photos: Path) -> None:
    watch.out = watch.out.with_name("results.db")
    shutil.copy(photos / "red.jpg", watch.folder / "a.jpg")
    with watch.open() as scan:
        scan()
    with closing(sqlite3.connect(watch.out)) as database, database:
        database.execute("INSERT INTO answers (label) VALUES ('rose')")
    with watch.open() as scan:
        scan()
    assert len(watch.rows()) == 2


def test_a_scan_that_takes_long_is_followed_by_a_pause_of_four_times_its_length(watch: Watch) -> None:
    with open_sink(watch.out) as sink:
        watcher = FolderWatcher(watch.folder, watch.reloader, sink, watch._show, print, watch._clock)
        assert watcher.scan() == watch.now + 1
        watch.reading = 3.0  # the folder is read from second 3 to second 6
        assert watcher.scan() == 6 + 4 * 3


def test_a_locked_database_is_the_problem_until_it_is_free(
    watch: Watch, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "LOCK_TIMEOUT", 0.01)
    path = tmp_path / "results.db"
    shutil.copy(photos / "red.jpg", watch.folder / "a.jpg")
    with open_sink(path) as sink, closing(sqlite3.connect(path)) as other:
        watcher = FolderWatcher(watch.folder, watch.reloader, sink, watch._show, print, watch._clock)
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            watcher.scan()
        assert watcher.problem == f"{path}: {sinks.IS_LOCKED}"
        other.rollback()
        watcher.scan()
        assert watcher.problem == ""


def test_a_locked_database_is_waited_for(
    watch: Watch, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "LOCK_TIMEOUT", 0.01)
    watch.out = tmp_path / "results.db"
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(photos / "red.jpg", watch.folder / name)
    with watch.open() as scan:
        with closing(sqlite3.connect(watch.out)) as other:
            other.execute("BEGIN IMMEDIATE")
            scan(4)
            other.rollback()
        assert watch.rows() == [] and len(watch.messages) == 1
        assert str(watch.out) in watch.messages[0] and "locked" in watch.messages[0]
        scan(1)
    assert sorted(watch.results()) == [("a.jpg", "红"), ("b.jpg", "红")] and len(watch.messages) == 1


@pytest.mark.parametrize(
    ("out", "fact"),
    [
        ("results.txt", ".csv or .db"),
        ("none/results.csv", "no such file or directory"),
        ("none/results.db", "no such file or directory"),
        ("other.csv", "columns"),
        ("other.db", "file is not a database"),
        ("huge.csv", "field larger than field limit"),
    ],
)
def test_an_out_file_that_cannot_be_used_is_refused_at_the_start(
    out: str, fact: str, colours: Path, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "other.csv").write_text("name,price\nrose,1")
    (tmp_path / "huge.csv").write_text(f"{','.join(COLUMNS)}\n{'x' * 200_000}\n")
    (tmp_path / "other.db").write_text("name,price\nrose,1\n" * 100)
    assert main(["--watch", str(folder), "--out", str(tmp_path / out), "--model", str(colours)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / out}: ") and fact in line
    assert (tmp_path / "other.csv").read_text() == "name,price\nrose,1"


def test_the_rows_of_earlier_runs_take_no_memory(tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    out.write_text(
        f"{','.join(COLUMNS)}\n" + f"2025-01-31T12:00:00Z,a.jpg,1,2,{'0' * 64},rose,1,,\n" * 20_000
    )
    tracemalloc.start()
    try:
        with open_sink(out) as sink:
            assert sink.done == {("a.jpg", 1, 2)}
            left, peak = tracemalloc.get_traced_memory()
            assert left < out.stat().st_size / 4 and peak < 2 * out.stat().st_size
    finally:
        tracemalloc.stop()


def test_a_folder_that_does_not_exist_is_refused(colours: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["--watch", str(tmp_path / "none"), "--model", str(colours)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'none'}: no such folder")


def test_a_row_that_a_power_loss_cut_short_is_written_again(watch: Watch, photos: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        shutil.copy(photos / "red.jpg", watch.folder / name)
    with watch.open() as scan:
        scan()
    watch.out.write_bytes(watch.out.read_bytes()[:-30])
    with watch.open() as scan:
        scan()
    assert watch.results() == [("1.jpg", "红"), ("2.jpg", "红")]


@pytest.mark.parametrize("flags", [["--out", "results.csv"]])
def test_a_watch_flag_without_watch_is_a_usage_error(flags: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["photo.jpg", *flags])
    assert "--watch" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "flags", [["--watch", ""], ["--watch", ".", "--out", ""], ["--camera", "--save-unknown", ""]]
)
def test_an_empty_path_does_not_mean_the_current_folder(flags: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert "the path is empty" in capsys.readouterr().err.splitlines()[-1]
