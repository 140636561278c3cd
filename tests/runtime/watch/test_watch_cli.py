"""`python -m runtime.classify --watch` in a few real runs."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers import PATIENCE, start_python, wait_for
from tests.runtime.preprocess.hostile import HOSTILE
from tests.runtime.watch.test_folder_watcher import NAMES, rows_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "arriving"
    folder.mkdir()
    return folder


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The command with a short pause between scans."""
    code = (
        "import sys; from runtime.watch import folder_watcher; from runtime.classify import main; "
        "folder_watcher.SCAN_INTERVAL = 0.05; folder_watcher.DAMAGED_AFTER = 0.2; sys.exit(main())"
    )
    process = start_python("-c", code, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def answers_of(path: Path) -> list[tuple[str, str]]:
    """The source and the label of each row so far."""
    return [(row["source"], row["label"]) for row in rows_of(path)] if path.exists() else []


def has_rows(path: Path, number: int) -> Callable[[], bool]:
    def check() -> bool:
        try:
            return path.exists() and len(rows_of(path)) >= number
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            return False  # the command has not created it yet

    return check


@NAMES
def test_a_killed_command_continues_without_gap_or_duplicate(
    name: str, colours: Path, photos: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / name
    for number in range(40):
        shutil.copy(photos / "red.jpg", folder / f"{number}.jpg")
    with started("--watch", folder, "--out", out, "--model", colours) as process:
        wait_for(has_rows(out, 5))
        process.kill()
        heading, first, *_ = process.communicate()[0].splitlines()
    assert heading.startswith(f"{folder}, ") and re.match(r"\d+\.jpg  红 +[\d.]+%", first)
    with started("--watch", folder, "--out", out, "--model", colours) as process:
        assert process.stdout and process.stdout.readline()  # SIGTERM is handled from now on
        wait_for(has_rows(out, 40))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0
    assert sorted(row["source"] for row in rows_of(out)) == sorted(f"{number}.jpg" for number in range(40))
    assert {row["label"] for row in rows_of(out)} == {"红"}


def test_the_command_prints_each_result_as_json_and_each_error(
    knowing: Path, photos: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.csv"
    (folder / "cut\n=1.jpg").write_bytes((photos / "red.jpg").read_bytes()[:200])
    shutil.copy(photos / "red.jpg", folder / "whole.jpg")
    with started("--watch", folder, "--out", out, "--model", knowing, "--json") as process:
        assert process.stdout and process.stderr
        lines = (json.loads(process.stdout.readline()) for _ in range(2))
        whole, cut = sorted(lines, key=lambda line: line["source"], reverse=True)
        error = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=PATIENCE) == ("", "") and process.returncode == 0
    assert (whole["source"], whole["label"], whole["known"]) == ("whole.jpg", "红", True)
    assert cut["source"] == "cut\\n=1.jpg" and "damaged" in cut["error"]
    assert error.startswith("error: cut\\n=1.jpg: ") and "damaged" in error
    assert {row["known"] for row in rows_of(out)} == {"true", ""}


@pytest.mark.slow
def test_a_good_photo_beside_a_hostile_one_has_its_answer_promptly(
    colours: Path, photos: Path, folder: Path, tmp_path: Path
) -> None:
    """One hostile photo delayed it by 25 s, on a machine where a good photo alone takes less than one."""

    def seconds_until_answered(name: str) -> float:
        begun = time.monotonic()
        shutil.copy(photos / "red.jpg", folder / f"{name}.jpg")
        wait_for(lambda: (f"{name}.jpg", "红") in answers_of(out))
        return time.monotonic() - begun

    names = ("JPEG of Exif segments", "PPM of comments", "TIFF of 14 million strips", "PNG of 80 megapixels")
    out = tmp_path / "results.csv"
    with started("--watch", folder, "--out", out, "--model", colours) as process:
        wait_for(out.exists)  # the command has started
        alone = seconds_until_answered("alone")
        for number, name in enumerate(names):
            (folder / f"hostile{number}.jpg").write_bytes(HOSTILE[name]())
            assert seconds_until_answered(f"good{number}") < 10 * max(1.0, alone)
        wait_for(has_rows(out, 1 + 2 * len(names)))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0
    errors = {row["source"]: row["error"] for row in rows_of(out)}
    facts = ("4,096 segments", "PPM", "1,048,576 values", "too much memory")
    assert all(fact in errors[f"hostile{number}.jpg"] for number, fact in enumerate(facts))
    assert not any(errors[f"good{number}.jpg"] for number in range(len(names)))


@pytest.mark.slow
def test_photos_that_are_slow_to_decode_do_not_hold_up_a_good_one(
    colours: Path, photos: Path, folder: Path, tmp_path: Path
) -> None:
    """Each takes longer than a scan. Twelve of them delayed a good photo by 45 s."""
    out, slow = tmp_path / "results.csv", HOSTILE["TIFF of one tag many times"]()
    for number in range(8):
        (folder / f"{number}.tif").write_bytes(slow)
    with started("--watch", folder, "--out", out, "--model", colours) as process:
        assert process.stdout and process.stdout.readline()
        begun = time.monotonic()
        shutil.copy(photos / "red.jpg", folder / "good.jpg")
        wait_for(has_rows(out, 1))
        answered = time.monotonic()
        wait_for(has_rows(out, 2))  # an error, after each slow photo was read once
        assert answers_of(out)[0] == ("good.jpg", "红")
        assert answered - begun < (time.monotonic() - begun) / 2


def test_a_closed_standard_output_ends_the_command_with_141(
    colours: Path, photos: Path, folder: Path, tmp_path: Path
) -> None:
    with started("--watch", folder, "--out", tmp_path / "results.csv", "--model", colours) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        shutil.copy(photos / "red.jpg", folder / "a.jpg")
        assert process.wait(timeout=PATIENCE) == 141
        assert process.stderr.read() == ""
        process.stdout = None
