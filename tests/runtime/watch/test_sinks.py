"""The tables of --watch: what other programs may do to them, and what a spreadsheet reads in them."""

from __future__ import annotations

import csv
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from runtime.common.errors import UserError
from runtime.watch import sinks
from runtime.watch.sinks import COLUMNS, IS_LOCKED, WAS_MOVED, Sink, WatchRow, open_sink

NAMES = pytest.mark.parametrize("name", ["results.csv", "results.db"])


def row(source: str, **fields: object) -> WatchRow:
    return WatchRow("2025-01-31T12:00:00Z", source, 1, 2, "a" * 64, **fields)  # type: ignore[arg-type]


def sources(path: Path) -> list[str]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [found["source"] for found in csv.DictReader(file)]
    with closing(sqlite3.connect(path)) as database:
        return [source for (source,) in database.execute("SELECT source FROM answers")]


@contextmanager
def opened(path: Path) -> Iterator[tuple[Sink, list[str]]]:
    messages: list[str] = []
    with open_sink(path, messages.append) as sink:
        yield sink, messages


@NAMES
def test_a_table_that_was_moved_away_is_started_again(name: str, tmp_path: Path) -> None:
    path, moved = tmp_path / name, tmp_path / f"moved-{name}"
    with opened(path) as (sink, messages):
        sink.add(row("a.jpg"))
        path.rename(moved)
        sink.add(row("b.jpg"))
        sink.add(row("c.jpg"))
    assert messages == [f"{path}: {WAS_MOVED}"]
    assert sources(moved) == ["a.jpg"] and sources(path) == ["b.jpg", "c.jpg"]


@NAMES
def test_rows_go_to_the_table_that_replaced_the_open_one(name: str, tmp_path: Path) -> None:
    path, other = tmp_path / name, tmp_path / f"other-{name}"
    with open_sink(other) as sink:
        sink.add(row("other.jpg"))
    with opened(path) as (sink, _):
        sink.add(row("a.jpg"))
        other.replace(path)
        sink.add(row("b.jpg"))
        assert ("other.jpg", 1, 2) in sink.done
    assert sources(path) == ["other.jpg", "b.jpg"]


def test_a_row_of_a_csv_file_is_on_the_disk_when_it_counts_as_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power loss takes no row that was added."""
    path, on_disk = tmp_path / "results.csv", list[int]()
    monkeypatch.setattr(os, "fsync", lambda descriptor: on_disk.append(os.fstat(descriptor).st_size))
    with opened(path) as (sink, _):
        for name in ("a.jpg", "b.jpg"):
            assert sink.add(row(name))
            assert on_disk[-1] == path.stat().st_size


def test_an_emptied_csv_file_gets_its_columns_again(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with opened(path) as (sink, _):
        sink.add(row("a.jpg"))
        path.write_bytes(b"")
        sink.add(row("b.jpg"))
    assert path.read_text().startswith(",".join(COLUMNS)) and sources(path) == ["b.jpg"]


def test_rows_stay_apart_if_an_editor_drops_the_last_line_ending(tmp_path: Path) -> None:
    """Such as an editor that writes into the open file."""
    path = tmp_path / "results.csv"
    with opened(path) as (sink, messages):
        sink.add(row("a.jpg", label="rose"))
        path.write_text(path.read_text().replace("rose", "roses").removesuffix("\n"))  # of the same size
        sink.add(row("b.jpg"))
    assert sources(path) == ["a.jpg", "b.jpg"] and messages == [f"{path}: {WAS_MOVED}"]


def test_a_table_that_another_one_replaced_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with opened(path) as (sink, _):
        path.unlink()
        path.write_text("name,price\nrose,1\n")
        with pytest.raises(UserError, match="other columns"):
            sink.add(row("a.jpg"))
    assert path.read_text() == "name,price\nrose,1\n"


@NAMES
def test_a_second_watcher_on_a_table_is_refused(name: str, tmp_path: Path) -> None:
    path, link = tmp_path / name, tmp_path / f"link-{name}"
    link.symlink_to(path)
    with opened(path):
        for again in (path, link):
            with pytest.raises(UserError, match=f"{again}: another --watch writes") as error, opened(again):
                pass
            assert "\n" not in str(error.value)
    with opened(path) as (sink, _):
        sink.add(row("a.jpg"))
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_database_that_is_locked_at_the_start_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "LOCK_TIMEOUT", 0.01)
    path, messages, waits = tmp_path / "results.db", list[str](), list[float]()
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")

        def release_at_the_second(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 2:
                other.rollback()

        monkeypatch.setattr("time.sleep", release_at_the_second)
        with open_sink(path, messages.append) as sink:
            assert sink.add(row("a.jpg"))
    assert messages == [f"{path}: {IS_LOCKED}"] and sources(path) == ["a.jpg"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", [True, False])
def test_a_table_that_an_editor_saved_is_continued(
    newline: str, mark: str, end: bool, tmp_path: Path
) -> None:
    path = tmp_path / "results.csv"
    with opened(path) as (sink, _):
        sink.add(row("a.jpg", label="rose", probability=0.9))
    text = mark + path.read_text().replace("\n", newline)
    path.write_text(text if end else text.removesuffix(newline), encoding="utf-8", newline="")
    with opened(path) as (sink, _):
        assert sink.done == {("a.jpg", 1, 2)}
        sink.add(row("b.jpg"))
    assert sources(path) == ["a.jpg", "b.jpg"]
    assert path.read_bytes().count(newline.encode()) == path.read_bytes().count(b"\n") == 3


def test_an_unfinished_quotation_is_removed(tmp_path: Path) -> None:
    """Completed with a line ending, it would hold the next row."""
    path = tmp_path / "results.csv"
    with opened(path) as (sink, _):
        sink.add(row("a.jpg", error="cut, in two"))
    path.write_bytes(path.read_bytes()[:-6])
    with opened(path) as (sink, _):
        assert sink.done == set()
        sink.add(row("b.jpg"))
    assert sources(path) == ["b.jpg"]


FORMULAS = [
    "=1+1.jpg",
    "+1.jpg",
    "-1.jpg",
    "@SUM(1).jpg",
    " =1.jpg",
    '"=1.jpg',
    "'=1.jpg",
    "''=1.jpg",
    "\uff1d1.jpg",
    "a;=1.jpg",
    'a";"=1.jpg',
    "a; '=1.jpg",
    ";;=1;=2.jpg",
]


@pytest.mark.parametrize("separator", [",", ";"])
def test_no_cell_of_a_table_starts_a_formula(separator: str, tmp_path: Path) -> None:
    """Also where a spreadsheet separates cells by semicolons."""
    path = tmp_path / "results.csv"
    with open_sink(path) as sink:
        for text in FORMULAS:
            sink.add(row(text, label=text, error=text))
    with path.open(newline="", encoding="utf-8") as file:
        cells = [cell for line in csv.reader(file, delimiter=separator) for cell in line]
    assert [cell for cell in cells if cell.lstrip(' "')[:1] in tuple("=+-@\uff1d")] == []


@NAMES
def test_names_that_look_like_formulas_stay_different_names(name: str, tmp_path: Path) -> None:
    plain = ["a-1.jpg", "IMG (2) = copy.jpg", "a; b.jpg", "rose's.jpg", "'a.jpg"]
    with open_sink(tmp_path / name) as sink:
        for text in FORMULAS + plain:
            sink.add(row(text))
    with open_sink(tmp_path / name) as sink:
        assert sink.done == {(text, 1, 2) for text in FORMULAS + plain}
    assert set(plain) <= set(sources(tmp_path / name))
