"""Where --capture may create a class folder: what it accepts, training reads as that class."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from runtime.camera.capture_folder import check_capture_folder, class_folder
from runtime.camera.recorder import PhotoRecorder
from runtime.common.errors import UserError
from tests.runtime.camera.helpers import plain
from train.data import find_photos as search
from train.data.dataset import PhotosError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A data set of the classes daisy and roses."""
    return write_classes(tmp_path / "photos")


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """The same in train/ and test/."""
    for split in ("train", "test"):
        write_classes(tmp_path / "splits" / split)
    return tmp_path / "splits"


def write_classes(folder: Path) -> Path:
    for color, label in (("white", "daisy"), ("red", "roses")):
        (folder / label).mkdir(parents=True)
        Image.new("RGB", (8, 8), color).save(folder / label / f"{folder.name} 1.png")
    return folder


def refusal(label: str, folder: Path, **options: bool) -> str:
    with pytest.raises(UserError) as caught:
        check_capture_folder(label, folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_existing_class_is_accepted(photos: Path, splits: Path) -> None:
    check_capture_folder("roses", photos)
    check_capture_folder("roses", splits / "train")
    check_capture_folder("daisy", splits / "test")


@pytest.mark.parametrize("label", ["unknown", "Unknown"])
def test_unknown_is_no_class(label: str, photos: Path, tmp_path: Path) -> None:
    for folder in (photos, tmp_path / "new"):
        assert f"--capture none {folder}" in refusal(label, folder, new_class=True)
    (photos / "roses").rename(photos / label)
    with pytest.raises(PhotosError, match=label):
        search.find_photos(photos)


def test_the_first_class_of_a_new_data_set_is_accepted(tmp_path: Path, photos: Path) -> None:
    check_capture_folder("roses", tmp_path / "none yet")
    check_capture_folder("roses", tmp_path / "new" / "train")
    (photos.parent / "empty").mkdir()
    check_capture_folder("roses", photos.parent / "empty")


def test_a_new_data_set_beside_folders_that_are_none_is_accepted(tmp_path: Path, photos: Path) -> None:
    (photos / "roses").rename(tmp_path / "unknown")  # of --save-unknown
    (photos / "daisy" / "photos 1.png").unlink()
    check_capture_folder("roses", tmp_path / "new")
    project = tmp_path / "project"
    for name in ("train/network", "docs", "models"):
        (project / name).mkdir(parents=True)
    check_capture_folder("roses", project / "photos")
    Image.new("RGB", (8, 8)).save(project / "docs" / "page.png")
    check_capture_folder("roses", project / "photos")


def test_other_folders_do_not_hide_a_data_set(photos: Path, splits: Path) -> None:
    (photos / "notes").mkdir()
    assert "daisy, roses" in refusal("roses", photos / "more")
    (splits / "raw").mkdir()
    assert refusal("roses", splits / "val").endswith(f"--capture roses {splits / 'train'}")


@pytest.mark.parametrize("label", ["rose", "tulips"])
def test_a_new_class_needs_a_flag_and_the_error_names_the_classes(label: str, photos: Path) -> None:
    message = refusal(label, photos)
    assert "daisy, roses" in message and "--new-class" in message
    check_capture_folder(label, photos, new_class=True)


@pytest.mark.parametrize("new_class", [False, True])
def test_a_label_in_another_case_is_refused(new_class: bool, photos: Path) -> None:
    assert refusal("Roses", photos, new_class=new_class).endswith(f"--capture roses {photos}")


def test_a_label_in_another_unicode_form_means_the_folder_that_exists(photos: Path) -> None:
    composed, decomposed = "p\u00e9tunia", "pe\u0301tunia"
    (photos / decomposed).mkdir()
    check_capture_folder(composed, photos, new_class=True)
    assert class_folder(composed, photos) == photos / decomposed
    assert class_folder("tulips", photos) == photos / "tulips"
    message = refusal(composed.title(), photos, new_class=True)
    assert message.endswith(f"--capture '{composed}' {photos}")


def test_photos_of_none_of_the_classes_need_no_flag(photos: Path, splits: Path, tmp_path: Path) -> None:
    check_capture_folder("none", photos)
    check_capture_folder("None", photos)
    check_capture_folder("none", splits / "train")
    check_capture_folder("none", tmp_path / "new")
    assert refusal("none", splits).endswith(f"--capture none {splits / 'train'}")
    assert refusal("none", photos / "roses").endswith(f"--capture none {photos}")


def test_the_folder_none_is_not_a_class(photos: Path, tmp_path: Path) -> None:
    (photos / "none").mkdir()
    assert "daisy, roses:" in refusal("rose", photos)
    (tmp_path / "new" / "none").mkdir(parents=True)
    check_capture_folder("roses", tmp_path / "new")  # its first class


@pytest.mark.parametrize("split", ["train", "Train", "val", "valid", "test"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_split_beside_class_folders_is_refused(split: str, exists: bool, photos: Path) -> None:
    if exists:
        (photos / split).mkdir()
    message = refusal("roses", photos / split, new_class=True)
    assert "daisy, roses" in message and message.endswith(f"--capture roses {photos}")


def test_a_data_set_inside_a_data_set_is_refused(photos: Path) -> None:
    assert refusal("roses", photos / "more").endswith(f"--capture roses {photos}")


def test_a_class_folder_as_the_data_set_is_refused(photos: Path) -> None:
    assert refusal("roses", photos / "roses").endswith(f"--capture roses {photos}")
    assert refusal("tulips", photos / "tulips").endswith(f"--capture tulips {photos}")


def test_a_class_beside_splits_is_refused(splits: Path) -> None:
    assert refusal("roses", splits, new_class=True).endswith(f"--capture roses {splits / 'train'}")
    assert refusal("roses", splits / "val").endswith(f"--capture roses {splits / 'train'}")


def test_a_folder_of_the_current_directory_is_checked_too(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    assert refusal("roses", Path("train")).endswith("--capture roses .")
    check_capture_folder("roses", Path())


def test_what_is_refused_would_break_training_and_what_is_advised_works(photos: Path) -> None:
    (photos / "train" / "roses").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(photos / "train" / "roses" / "captured.png")
    with pytest.raises(PhotosError):
        search.find_photos(photos)
    (photos / "train" / "roses" / "captured.png").rename(photos / "roses" / "captured.png")
    (photos / "train" / "roses").rmdir()
    (photos / "train").rmdir()
    assert search.find_photos(photos, val_share=0, test_share=0).classes == ("daisy", "roses")


def test_training_reads_captured_and_unknown_frames_as_photos_of_none(photos: Path, tmp_path: Path) -> None:
    def record(folder: Path, colors: list[tuple[int, int, int]]) -> None:
        with PhotoRecorder(folder, 0.0, 1.0, lambda line: None) as recorder:
            for number, color in enumerate(colors, 1):
                recorder.save(partial(plain, color), number, float(number))

    check_capture_folder("none", photos)
    record(photos / "none", [(9, 9, 9), (90, 90, 90)])  # --capture none photos
    found = search.find_photos(photos, val_share=0, test_share=0)
    assert found.classes == ("daisy", "roses") and len(found.negatives) == 2
    record(tmp_path / "unknown", [(9, 90, 9), (90, 9, 90), (9, 9, 90)])  # --save-unknown unknown
    found = search.find_photos(photos, val_share=0, test_share=0, none=tmp_path / "unknown")
    assert found.classes == ("daisy", "roses") and len(found.negatives) == 3


@pytest.mark.parametrize(
    "label", ["", "..", "../up", "a/b", "a\\b", ".hidden", "-x", "tail.", "a\nb", "x" * 201, "\udcff"]
)
def test_a_class_has_a_plain_name(label: str, tmp_path: Path) -> None:
    assert "cannot be a class" in refusal(label, tmp_path / "new", new_class=True)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_folder_means_its_place(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos / "roses")
    assert f"--capture tulips {photos}" in refusal("tulips", Path())
    check_capture_folder("roses", Path(".."))


def test_a_suggested_command_is_quoted_for_the_shell(tmp_path: Path) -> None:
    photos = write_classes(tmp_path / "my photos")
    assert f"--capture 'water lily' '{photos}'" in refusal("water lily", photos / "roses")
