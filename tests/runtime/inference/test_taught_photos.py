"""Kept photos: bounded, in folders that are safe for every label, and whole after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import datetime, tzinfo
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.common.errors import UserError
from runtime.inference.taught_photos import (
    MAX_NEW_LABELS,
    TaughtPhotos,
    check_label,
    find_label,
    folder_label,
    label_folder,
)
from runtime.preprocess.picture import read_picture
from runtime.preprocess.stored_photo import MAX_SIDE
from tests.helpers import ROOT, nested_folders, wait_for


def picture(seed: int, side: int = 40) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def test_photos_are_kept_by_label(tmp_path: Path) -> None:
    store = TaughtPhotos(tmp_path / "state")
    assert store.photos() == [] and store.labels() == {}
    added = [store.add(label, picture(at)) for at, label in enumerate(("rose", "none", "rose"))]
    assert store.photos() == added and store.labels() == {"none": 1, "rose": 2}
    assert added[0].path == tmp_path / "state" / "photos" / "rose" / added[0].id
    red = store.add("red", np.full((40, 40, 3), (200, 40, 90), np.uint8))
    assert np.abs(read_picture(red.path, (40, 40)).mean((0, 1)) - (200, 40, 90)).max() < 3
    store.remove(red.id)
    assert TaughtPhotos(tmp_path / "state").find(added[1].id) == added[1]
    store.remove(added[1].id)
    assert store.labels() == {"rose": 2} and not added[1].path.parent.exists()
    store.clear()
    assert store.photos() == []


def test_the_same_picture_moves_to_its_new_label(tmp_path: Path) -> None:
    store = TaughtPhotos(tmp_path)
    first = store.add("rose", picture(1))
    assert store.add("rose", picture(1)) == first
    moved = store.add("tulip", picture(1))
    assert moved.id == first.id and store.labels() == {"tulip": 1}
    assert store.move(first.id, "rose").label == "rose" and store.labels() == {"rose": 1}


def test_large_frames_are_reduced(tmp_path: Path) -> None:
    photo = TaughtPhotos(tmp_path).add("rose", np.zeros((1080, 1920, 3), np.uint8))
    from PIL import Image

    with Image.open(photo.path) as image:
        assert image.size == (MAX_SIDE, 540)


def test_other_files_are_neither_listed_nor_changed(tmp_path: Path) -> None:
    store = TaughtPhotos(tmp_path, max_mb=0.02)
    folder = tmp_path / "photos" / "rose"
    folder.mkdir(parents=True)
    (folder / "mine.jpg").write_bytes(bytes(5000))
    (tmp_path / "photos" / "a%2").mkdir()
    for at in range(30):
        store.add("rose", picture(at))
    assert (folder / "mine.jpg").exists() and all(photo.id != "mine.jpg" for photo in store.photos())
    for id in ("mine.jpg", "../state.json", "", "x" * 300):
        with pytest.raises(KeyError):
            store.find(id)


def plant_entries(folder: Path) -> None:
    """Creates entries with the names of photos that are no files: a link to a secret, a pipe and a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "secret").write_bytes(b"secret")
    (folder / "20250101T000000000000Z_0123456789abcdef.jpg").symlink_to("../secret")
    os.mkfifo(folder / "20250101T000000000001Z_0123456789abcdef.jpg")
    (folder / "20250101T000000000002Z_0123456789abcdef.jpg").mkdir()


def test_only_files_are_photos(tmp_path: Path) -> None:
    """A learned state may come from another machine: reading a pipe would never end."""
    plant_entries(tmp_path / "photos" / "rose")
    store = TaughtPhotos(tmp_path)
    added = store.add("rose", picture(1))
    assert store.photos() == [added]
    store.clear()
    assert len(list((tmp_path / "photos" / "rose").iterdir())) == 3


def test_a_link_to_a_folder_holds_no_photos(tmp_path: Path) -> None:
    """Else removing all photos would delete files outside of the learned state."""
    other = TaughtPhotos(tmp_path / "other")
    kept = other.add("rose", picture(1))
    store = TaughtPhotos(tmp_path / "state")
    store.folder.mkdir(parents=True)
    (store.folder / "rose").symlink_to(kept.path.parent)
    assert store.photos() == []
    store.clear()
    assert other.photos() == [kept]


def test_a_photo_beside_3000_nested_folders_is_added(tmp_path: Path) -> None:
    with nested_folders(tmp_path):
        assert TaughtPhotos(tmp_path).add("rose", picture(1)).label == "rose"


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_oldest_photos_make_room(tmp_path: Path) -> None:
    store = TaughtPhotos(tmp_path, max_mb=0.02)
    (tmp_path / "state.json").write_bytes(bytes(4000))  # counts too
    ids = []
    for at in range(60):
        ids.append(store.add(f"label {at % 3}", picture(at)).id)
        assert size(tmp_path) <= 20_000
    kept = [photo.id for photo in store.photos()]
    assert kept == ids[-len(kept) :] and 3 <= len(kept) < 20
    with pytest.raises(UserError, match=r"no room for a photo of [\d,]+ bytes: raise --max-mb"):
        TaughtPhotos(tmp_path, max_mb=0.001).add("rose", picture(99))
    assert store.photos() == [
        photo for photo in store.photos() if photo.id in kept
    ]  # none was deleted in vain
    assert len(store.photos()) == len(kept)


def test_a_clock_of_the_past_does_not_make_new_photos_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Past(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Past:
            return cls(2001, 1, 1, tzinfo=tz)

    store = TaughtPhotos(tmp_path)
    first = store.add("scene", picture(1))
    monkeypatch.setattr("runtime.preprocess.stored_photo.datetime", Past)
    added = [store.add("scene", picture(seed)).id for seed in (2, 3)]
    assert [photo.id for photo in store.photos()] == [first.id, *added]


def test_a_folder_that_had_a_larger_limit_keeps_its_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service has no flag for the limit."""
    monkeypatch.setattr("runtime.inference.taught_photos.MAX_MB", 0.004)
    large = TaughtPhotos(tmp_path, max_mb=1)
    ids = [large.add("rose", picture(at)).id for at in range(20)]
    store = TaughtPhotos(tmp_path)
    store.trim()
    assert [photo.id for photo in store.photos()] == ids
    before = size(tmp_path)
    store.add("rose", picture(20))
    assert size(tmp_path) <= before


def test_the_number_of_photos_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 MB would hold 300,000 photos of 700 bytes, and a service lists all of them for /status."""
    monkeypatch.setattr("runtime.inference.taught_photos.MAX_PHOTOS", 5)
    store = TaughtPhotos(tmp_path)
    ids = [store.add("rose", picture(at)).id for at in range(8)]
    store.trim()
    assert [photo.id for photo in store.photos()] == ids[-5:]


def test_a_folder_with_more_photos_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TaughtPhotos(tmp_path)
    for at in range(8):
        store.add("rose", picture(at))
    monkeypatch.setattr("runtime.inference.taught_photos.MAX_PHOTOS", 5)
    store.trim()
    assert len(store.photos()) == 8
    store.add("rose", picture(9))
    assert len(store.photos()) == 8


def test_a_step_keeps_the_photos_before_it_until_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.inference.taught_photos.MAX_PHOTOS", 5)
    store = TaughtPhotos(tmp_path)
    old = [store.add("rose", picture(at)).id for at in range(3)]
    store.start_step()
    new = [store.add("rose", picture(at)).id for at in range(3, 11)]
    assert [photo.id for photo in store.photos()] == [*old, *new[-5:]]
    assert [photo.id for photo in store.excess()] == old
    store.trim()
    assert [photo.id for photo in store.photos()] == new[-5:] and store.excess() == []


def test_a_photo_that_a_step_teaches_again_is_deleted_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.inference.taught_photos.MAX_PHOTOS", 3)
    store = TaughtPhotos(tmp_path)
    oldest, *others = [store.add("rose", picture(at)).id for at in range(3)]
    store.start_step()
    assert store.add("tulip", picture(0)).id == oldest
    new = store.add("rose", picture(3)).id
    store.trim()
    assert [photo.id for photo in store.photos()] == [oldest, others[1], new]


def test_the_bytes_of_a_step_are_bounded(tmp_path: Path) -> None:
    store = TaughtPhotos(tmp_path, max_mb=0.02)
    for at in range(12):
        store.add("rose", picture(at))
    kept = [photo.id for photo in store.photos()]
    store.start_step()
    for at in range(12, 40):
        store.add("rose", picture(at))
        assert size(tmp_path) <= 40_000
    assert [photo.id for photo in store.photos()][: len(kept)] == kept
    store.trim()
    assert size(tmp_path) <= 20_000


def test_the_files_are_counted_once_in_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each photo takes longer than the one before."""
    store, counts, count_bytes = TaughtPhotos(tmp_path), list[int](), TaughtPhotos._count_bytes
    monkeypatch.setattr(TaughtPhotos, "_count_bytes", lambda store: counts.append(1) or count_bytes(store))
    store.start_step()
    for at in range(5):
        store.add("rose", picture(at))
    other = TaughtPhotos(tmp_path)  # as of another process
    other.remove(store.photos()[0].id)
    assert store.add("tulip", picture(1)).id == other.photos()[0].id
    assert store.add("rose", picture(0)) == other.photos()[-1] and len(counts) == 1


@pytest.mark.slow
def test_ten_thousand_photos_stay_within_the_bound(tmp_path: Path) -> None:
    store, largest = TaughtPhotos(tmp_path, max_mb=0.03), 0
    for at in range(10_000):
        store.add(f"label {at % 3}", picture(at, side=8))
        if at % 100 == 0:
            largest = max(largest, size(tmp_path))
    assert 25_000 < largest <= 30_000 and size(tmp_path) <= 30_000 and len(store.labels()) == 3


def test_a_killed_process_leaves_whole_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its unfinished files are never listed, and a later photo removes them."""
    code = """
import sys
import numpy as np
from pathlib import Path
from runtime.inference.taught_photos import TaughtPhotos
store, random = TaughtPhotos(Path(sys.argv[1])), np.random.default_rng()
print("ready", flush=True)
while True:
    store.add("rose", random.integers(0, 256, (64, 64, 3), np.uint8))
"""
    for round in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        if round % 2:  # a busy machine may not store a photo within the time of any other round
            wait_for(lambda: bool(TaughtPhotos(tmp_path).photos()))
        time.sleep(0.05 + 0.05 * round)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    store = TaughtPhotos(tmp_path)
    assert store.photos()
    for photo in store.photos():
        read_picture(photo.path)
    monkeypatch.setattr("runtime.common.atomic.UNFINISHED_AFTER", -1.0)
    store.add("rose", picture(0))
    assert [path.name for path in (tmp_path / "photos" / "rose").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "label",
    ["rose", "none", "a/b", "..", ".hidden", "a\\b", "c:", "100 %", "红 花", "x.", "e\u0301", "a%2Fb", "*?"],
)
def test_every_label_has_one_safe_folder(label: str, tmp_path: Path) -> None:
    name = label_folder(label)
    assert "/" not in name and "\\" not in name and not name.startswith(".")
    store = TaughtPhotos(tmp_path)
    photo = store.add(label, picture(1))
    assert photo.path.parent.parent == tmp_path / "photos"
    (found,) = store.photos()
    assert find_label(found.label, [label]) == label
    assert folder_label(name) is not None


@pytest.mark.parametrize("name", ["a%2", "%", "%zz", "a\x1b", "", "%2f"])
def test_other_folders_have_no_label(name: str) -> None:
    assert folder_label(name) is None


def test_labels_are_checked() -> None:
    labels = ("daisy", "Rote Rose", "Café")
    assert check_label("daisy", labels) == "daisy" and check_label("none", labels) == "none"
    assert check_label("e\u0301t\u00e9", labels) == "\u00e9t\u00e9"
    for label, reason in (
        ("Daisy", "the label daisy exists"),
        ("ROTE ROSE", "the label Rote Rose exists"),
        ("cafe\u0301", "the label Café exists"),
        ("None", "the label none exists"),
        ("unknown", "teach them as none"),
        ("Unknown", "teach them as none"),
        ("", "is not a label"),
        (" x", "is not a label"),
        ("a\nb", "is not a label"),
        ("a\x1b[2J", "is not a label"),
        ("x" * 61, "too long"),
        ("红" * 60, ""),
        ("%" * 59 + "红", ""),
        ("🌹" * 50, ""),
        ("🌹" * 51, "too long"),  # for the name of a folder: 204 bytes
    ):
        if not reason:
            assert check_label(label, labels) == label
            continue
        with pytest.raises(UserError) as caught:
            check_label(label, labels)
        assert reason in str(caught.value) and str(caught.value).isprintable()


def test_a_label_of_thousands_of_accents_is_refused_at_once() -> None:
    """Composing them would take a service 8 s, in which it answers nobody."""
    started = time.thread_time()
    with pytest.raises(UserError, match="is not a label"):
        check_label("a" + "\u0301\u0316" * 50_000, ("daisy",))
    assert time.thread_time() - started < 2


def test_the_number_of_new_classes_is_bounded() -> None:
    classes = ("daisy", "tulip")
    labels = [*classes, *(f"new {at}" for at in range(MAX_NEW_LABELS))]
    assert check_label("another", labels[:-1], classes) == "another"
    for label in ("none", "tulip", "new 0"):
        assert check_label(label, labels, classes) == label
    with pytest.raises(UserError, match="another: is a new class, and a device learns 50"):
        check_label("another", labels, classes)
