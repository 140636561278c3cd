from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.preprocess.picture import PICTURE_VERSION, read_picture
from tests.helpers import ROOT
from train.__main__ import main
from train.data.dataset import Dataset, Photo
from train.data.find_photos import find_photos
from train.metrics import compute_metrics
from train.network.novelty import unknown_rate
from train.network.vgg import read_weights
from train.run import RUN_FILES, RunError, newest_run, open_run, replaced_run_dir
from train.run_writer import (
    check_output_dir,
    check_replaceable,
    lock_output,
    new_run_dir,
    write_record,
    write_uncompressed,
)

# The record of a run that trained nothing.
RECORD: dict[str, Any] = {
    "name": "run",
    "created": "2026-01-01T00:00:00+00:00",
    "recipe": "pooled",
    "settings": {},
    "base_sha256": "",
    "picture_version": PICTURE_VERSION,
    "versions": {},
    "device": "cpu:0",
    "metrics": {},
    "thresholds": {},
}

COMPRESSED = {
    "from": "a",
    "through": "",
    "epochs": 1,
    "size": 64,
    "macs": 1,
    "of_size": 64,
    "of_macs": 2,
    "uncompressed_top1": {},
}


def test_the_run_folder_holds_the_complete_record(
    synthetic_run: Path, synthetic_photos: Path, small_weights: Path
) -> None:
    run = open_run(synthetic_run)
    assert run.name == "drawn" and run.recipe == "pooled" and run.synthetic
    assert run.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert run.dataset == find_photos(synthetic_photos)
    assert run.data_sha256 == run.dataset.sha256
    assert run.base_sha256 == read_weights(str(small_weights)).sha256
    assert run.settings["weights"] == str(small_weights)
    assert run.picture_version == PICTURE_VERSION
    assert run.settings["epochs"] and run.settings["views"] == 1
    assert {"python", "tensorflow", "keras", "numpy", "pillow"} <= run.versions.keys()
    assert {path.name for path in synthetic_run.iterdir()} == {
        *("model.keras", "run.json", "photos.csv", "left_out.csv"),
        *("history.csv", "metrics.json", "curves.png", "confusion.png"),
        *("settings.toml", "near_duplicates.csv", "suspect_labels.csv", "report.html"),
        "statistics.safetensors",
    }
    assert check_output_dir(synthetic_run, overwrite=True, resume=False)
    with (synthetic_run / "history.csv").open() as file:
        assert len(list(csv.DictReader(file))) == run.settings["epochs"]
    for picture in ("curves.png", "confusion.png"):
        with Image.open(synthetic_run / picture) as image:
            assert np.asarray(image).std() > 5


def test_the_saved_model_gives_the_recorded_metrics(synthetic_run: Path) -> None:
    """From the pictures themselves, not from the features that the head was trained on."""
    run = open_run(synthetic_run)
    recorded = json.loads((synthetic_run / "metrics.json").read_text())["test"]
    photos = run.dataset.split("test")
    pixels = np.stack([read_picture(run.dataset.root / photo.path, (64, 64)) for photo in photos])
    probabilities, known, _ = run.load_model().predict_on_batch(pixels)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    labels = np.array([run.classes.index(photo.label) for photo in photos])
    found = compute_metrics(probabilities, labels, run.classes)
    assert found["confusion"] == recorded["confusion"]
    assert found["loss"] == pytest.approx(recorded["loss"], rel=0.01)
    shared = ("n", "top1", "loss", "ece")
    assert {key: run.metrics["test"][key] for key in shared} == {key: recorded[key] for key in shared}
    assert run.metrics["test"]["unknown"] == unknown_rate(known[:, 0], run.thresholds)


@pytest.mark.slow
def test_the_bundled_base_learns_drawn_flowers(synthetic_photos: Path, tmp_path: Path) -> None:
    assert main([str(synthetic_photos), "--out", str(tmp_path / "run"), "--views", "1"]) == 0
    run = open_run(tmp_path / "run")
    assert run.base_sha256 == read_weights().sha256
    assert run.load_model().inputs[0].shape == (None, 224, 224, 3)
    assert run.metrics["test"]["top1"] >= 0.6


def test_the_newest_run_is_the_one_created_last(synthetic_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run in"):
        newest_run(tmp_path)
    record = json.loads((synthetic_run / "run.json").read_text())
    for name, created in (
        ("a", "2026-01-02T00:00:00+00:00"),
        ("b", "2026-01-01T00:00:00+00:00"),
        (".c", "2027"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(record | {"created": created}))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    assert newest_run(tmp_path) == tmp_path / "a"


def test_an_incomplete_run_folder_raises_run_error(synthetic_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        open_run(tmp_path / "nowhere")
    copy = shutil.copytree(synthetic_run, tmp_path / "copy")
    (copy / "run.json").write_text('{"name": "x"}')
    with pytest.raises(RunError, match="its record cannot be read"):
        open_run(copy)
    shutil.copy(synthetic_run / "run.json", copy)
    (copy / "model.keras").write_bytes((synthetic_run / "model.keras").read_bytes()[:1000])
    with pytest.raises(RunError, match=r"model.keras cannot be read"):
        open_run(copy).load_model()
    (copy / "photos.csv").unlink()
    with pytest.raises(RunError, match=r"photos.csv is missing"):
        open_run(copy)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_photo_folder_whose_name_is_not_utf8_is_read_back(tmp_path: Path) -> None:
    photos = tmp_path / os.fsdecode(b"caf\xe9")
    for label in "ab":
        (photos / label).mkdir(parents=True)
        (photos / label / "1.jpg").write_text(label)
    dataset = find_photos(photos)
    write_record(tmp_path, RECORD, dataset)
    (tmp_path / "model.keras").touch()
    assert open_run(tmp_path).dataset == dataset


def test_uncompressed_labels_are_read_back_for_any_file_name(tmp_path: Path) -> None:
    photos = tuple(Photo(f"a/{name}", "a", "val", "0" * 64) for name in ("one\rtwo", "\r\n", 'a,"b"', "薔薇"))
    train = (Photo("a/1", "a", "train", "1" * 64), Photo("b/1", "b", "train", "2" * 64))
    dataset = Dataset(tmp_path, ("a", "b"), (*train, *photos))
    write_uncompressed(tmp_path, dataset, {"val": np.array([0, 1, 1, 0])})
    write_record(tmp_path, RECORD | {"compressed": COMPRESSED}, dataset)
    (tmp_path / "model.keras").touch()
    assert open_run(tmp_path).uncompressed_labels() == dict(
        zip((photo.path for photo in photos), "abba", strict=True)
    )


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A run folder with two photos and an empty model file."""
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / "photos" / label / "1.jpg").write_text(label)
    folder = tmp_path / "run"
    folder.mkdir()
    write_record(folder, RECORD, find_photos(tmp_path / "photos"))
    (folder / "model.keras").touch()
    return folder


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"name": 5}, "name is missing or not of type str"),
        ({"thresholds": None}, "thresholds is missing or not of type dict"),
        ({"thresholds": {"known": "half"}}, "thresholds"),
        ({"metrics": [1]}, "metrics is missing or not of type dict"),
        ({"compressed": [1]}, "compressed is missing or not of type dict"),
        ({"compressed": {"from": "a"}}, "compressed.epochs is missing or not of type int"),
        ({"compressed": COMPRESSED | {"macs": "1"}}, "compressed.macs is missing or not of type int"),
        ({"settings": []}, "settings is missing or not of type dict"),
        ({"settings": {"val_share": "x"}}, "settings.val_share is 'x'; it must be a number"),
        ({"temperature": "x"}, "temperature is missing or not of type float"),
        ({"versions": None}, "versions is missing or not of type dict"),
        ({"classes": [1, 2]}, "classes"),
        ({"fine_tuning_discarded": 1}, "fine_tuning_discarded is missing or not of type bool"),
        ({"picture_version": True}, "picture_version is missing or not of type int"),
        *(({"name": name}, "name is not a plain") for name in ("/etc/cron.d", "../x", "..", 256 * "x")),
    ],
)
def test_a_record_with_wrong_types_raises_run_error(bare: Path, change: dict[str, Any], fact: str) -> None:
    record = json.loads((bare / "run.json").read_text())
    assert open_run(bare).classes == ("a", "b")
    (bare / "run.json").write_text(json.dumps(record | change))
    with pytest.raises(RunError, match=f"its record cannot be read .*{fact}") as error:
        open_run(bare)
    assert str(error.value).isprintable()
    with pytest.raises(RunError, match="no run in"):
        newest_run(bare.parent)


@pytest.mark.parametrize("change", [(",b,", ",c,"), (",train,", ",tset,"), ("b/1.jpg", "c/1.jpg")])
def test_photos_of_another_run_raise_run_error(bare: Path, change: tuple[str, str]) -> None:
    """Of the changes to photos.csv, only a new path is allowed: a photo may have moved."""
    file = bare / "photos.csv"
    file.write_text(file.read_text().replace(*change))
    if "1.jpg" in change[0]:
        assert open_run(bare).dataset.photos[-1].path == change[1]
        return
    with pytest.raises(RunError, match=r"photos\.csv lists other photos than those of run\.json"):
        open_run(bare)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"label": "c"}, "a photo of the split train and label c"),
        ({"split": "tset"}, "a photo of the split tset and label b"),
        ({"path": "a\0b"}, "a path with a null character"),
        ({"split": "val"}, "the classes are not those of the training photos"),
    ],
)
def test_photos_that_no_training_writes_raise_run_error(
    bare: Path, change: dict[str, str], fact: str
) -> None:
    dataset = open_run(bare).dataset
    changed = replace(dataset.photos[-1], **change)
    write_record(bare, RECORD, replace(dataset, photos=(*dataset.photos[:-1], changed)))
    with pytest.raises(RunError, match=f"its record cannot be read .*{fact}"):
        open_run(bare)


def test_an_older_run_gets_the_defaults_of_the_settings_that_it_lacks(bare: Path) -> None:
    assert open_run(bare).settings["class_weight"] == "balanced"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", 100_000 * "["),
        ("run.json", "[]"),
        ("photos.csv", f"path,label,split,sha256\n{200_000 * 'x'},a,train,0\n"),
        ("photos.csv", "path,label,split,sha256\na/1.jpg,a\n"),
        ("photos.csv", "path,label,split,sha256\n"),
        ("left_out.csv", "path,why\x1b\na/1.jpg,none\n"),
    ],
)
def test_a_damaged_record_raises_run_error(bare: Path, name: str, text: str) -> None:
    (bare / name).write_text(text)
    with pytest.raises(RunError, match="its record cannot be read") as error:
        open_run(bare)
    assert str(error.value).isprintable()


def test_moved_folders_may_be_relative_paths(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bare.parent)
    dataset = open_run(bare, Path("photos"), Path("frames"), Path("taught")).dataset
    assert (dataset.root, dataset.negatives_root, dataset.added_root) == (
        *(bare.parent / name for name in ("photos", "frames", "taught")),
    )


def test_a_run_without_a_name_is_named_after_its_folder(bare: Path) -> None:
    record = json.loads((bare / "run.json").read_text())
    (bare / "run.json").write_text(json.dumps(record | {"name": ""}))
    assert open_run(bare).name == "run"


def test_an_unreadable_run_raises_run_error_with_the_reason(bare: Path) -> None:
    with pytest.raises(RunError, match="File name too long"):
        open_run(bare / (300 * "x"))
    (bare / "run.json").unlink()
    (bare / "run.json").symlink_to(300 * "x")
    with pytest.raises(RunError, match="File name too long"):
        open_run(bare)


def test_a_run_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_run_dir(tmp_path / "run", overwrite=False) as folder:
        (folder / "file").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    for text in ("old", "new"):
        with new_run_dir(tmp_path / "run", overwrite=True) as folder:
            (folder / "file").write_text(text)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "file").read_text() == "new"


def test_leftovers_of_a_killed_process_do_not_block_a_new_run(tmp_path: Path) -> None:
    left = tmp_path / f".run.{os.getpid()}"
    left.mkdir()
    with new_run_dir(tmp_path / "run", overwrite=False) as folder:
        (folder / "file").write_text("new")
    assert (tmp_path / "run" / "file").read_text() == "new"
    assert tmp_path.joinpath("run").stat().st_mode == left.stat().st_mode


KILLED_SWAP = """
import os, sys
from pathlib import Path
from train.run_writer import new_run_dir

rename = Path.rename
Path.rename = lambda path, target: rename(path, target) and target.name.endswith(".old") and os._exit(9)
with new_run_dir(Path(sys.argv[1]), overwrite=True):
    pass
"""


def test_a_run_is_found_after_a_kill_between_the_two_renames(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = bare.with_name("link")
    link.symlink_to(bare)
    assert subprocess.run([sys.executable, "-c", KILLED_SWAP, str(link)], check=False).returncode == 9
    assert not bare.exists()
    with pytest.raises(RunError, match=r"was killed; to restore it, run: mv \S+\.old \S+/run$"):
        open_run(bare)
    with lock_output(link):
        assert check_output_dir(link, overwrite=True, resume=False)
    assert "is back" in capsys.readouterr().err and open_run(link).name == "run"
    shutil.copytree(bare, replaced_run_dir(bare))  # as after a kill behind the second rename
    with lock_output(bare):
        assert open_run(bare).name == "run" and not replaced_run_dir(bare).exists()
    bare.rename(replaced_run_dir(bare))
    bare.mkdir()  # no run: the user's, since the kill
    with lock_output(bare):
        assert replaced_run_dir(bare).exists()


def test_a_run_that_holds_a_folder_or_a_file_of_the_user_is_not_replaced(bare: Path) -> None:
    (bare / "photos").mkdir()
    with pytest.raises(RunError, match=r"run/photos: would be deleted .*; move this folder"):
        check_output_dir(bare, overwrite=True, resume=False)
    (bare / "photos").rmdir()
    for name in ("notes.txt", "README.md", "model.tflite", "garden.jpg"):
        (bare / name).touch()
        with pytest.raises(RunError, match=rf"run/{name}: would be deleted .*; move this file, or choose"):
            check_output_dir(bare, overwrite=True, resume=False)
        (bare / name).unlink()
    for name in (".DS_Store", "._run.json"):
        (bare / name).touch()
    assert check_output_dir(bare, overwrite=True, resume=False)
    (bare / "README.md").touch()
    check_replaceable(bare, True, "FOLDER", kept=("README.md",))


@pytest.mark.parametrize("name", ["flowers_run", "flowers_compressed", "flowers_small_run"])
def test_a_run_of_this_project_holds_known_files_only(name: str) -> None:
    assert {path.name for path in (ROOT / "models" / name).iterdir()} <= RUN_FILES | {"README.md"}


def test_the_first_run_in_a_new_folder_is_locked(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "first"
    with lock_output(out), pytest.raises(RunError, match="another command is writing it"), lock_output(out):
        pass


def test_a_run_folder_may_have_the_longest_possible_name(tmp_path: Path) -> None:
    name = 85 * "薔"  # of three bytes each
    for text in ("old", "new"):
        with new_run_dir(tmp_path / name, overwrite=True) as folder:
            (folder / "file").write_text(text)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_replacing_a_linked_run_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with new_run_dir(tmp_path / "run", overwrite=True) as folder:
        (folder / "file").write_text("new")
    assert (tmp_path / "run").is_symlink() and (tmp_path / "elsewhere" / "file").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_raises_run_error_and_keeps_the_old_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("old")
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if (self / "file").read_text() == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with (
        pytest.raises(RunError, match=r"cannot be written \(No space left on device\)"),
        new_run_dir(tmp_path / "run", overwrite=True) as folder,
    ):
        (folder / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "file").read_text() == "old"
