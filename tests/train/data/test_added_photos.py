"""--add: photos of another folder are learned, and val and test stay as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime.preprocess.photo_files import NONE_LABEL
from train.data.added_photos import add_photos
from train.data.dataset import Dataset, LeftOut, Photo, PhotosError, read_verified
from train.data.find_photos import find_photos
from train.data.manifest import read_manifest, write_manifest


def put(root: Path, *files: str, content: str | None = None) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(content or file)
    return root


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    root = put(tmp_path / "photos", *(f"{label}/{number}.jpg" for label in "ab" for number in range(20)))
    return find_photos(put(root, *(f"none/{number}.jpg" for number in range(10))))


def test_added_photos_go_to_train_only(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taught = put(tmp_path / "taught", "b/new1.jpg", "b/new2.jpg", "c/new3.jpg", "None/new4.jpg", "c/x.txt")
    added = add_photos(dataset, taught)
    assert [(photo.label, Path(photo.path)) for photo in added.added] == [
        ("b", taught / "b/new1.jpg"),
        ("b", taught / "b/new2.jpg"),
        ("c", taught / "c/new3.jpg"),
        (NONE_LABEL, taught / "None/new4.jpg"),
    ]
    assert added.classes == ("a", "b", "c")
    for split in ("val", "test"):
        assert added.split(split) == dataset.split(split)
        assert added.negatives_of(split) == dataset.negatives_of(split)
    assert len(added.split("train")) == len(dataset.split("train")) + 3
    assert added.left_out == (LeftOut(f"{taught}/c/x.txt", "is not a picture by its file name"),)
    assert read_verified(added, added.added[0]) == b"b/new1.jpg"
    first, second = capsys.readouterr().out.splitlines()
    assert first == (f"added: {taught}: 4 photos to train: b 2, c 1 (new class), none 1; 1 file left out")
    assert second.startswith(
        "added: c: no val and test photos, so the accuracy of this class is not measured"
    )


def test_added_photos_may_be_the_only_training_photos_of_a_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = put(
        tmp_path / "photos",
        *(f"{split}/{label}/{split}.jpg" for split in ("train", "test") for label in "ab"),
    )
    put(root, "test/c/test c.jpg")
    with pytest.raises(PhotosError, match="class c is in test/ but not in train/"):
        find_photos(root)
    added = add_photos(find_photos(root, validate=False), put(tmp_path / "taught", "c/new.jpg"))
    assert [photo.split for photo in added.photos if photo.label == "c"] == ["train", "test"]
    assert "is not measured" not in capsys.readouterr().out
    with pytest.raises(PhotosError, match="class c is in test/ but not in train/"):
        add_photos(find_photos(root, validate=False), put(tmp_path / "other", "a/new.jpg"))


def test_negatives_in_a_folder_inside_the_added_one_are_not_added(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", *(f"{label}/{number}.jpg" for label in "ab" for number in range(20)))
    taught = put(tmp_path / "taught", "a/new.jpg", *(f"none/none {number}.jpg" for number in range(20)))
    added = add_photos(find_photos(root, none=taught / "none"), taught)
    assert [Path(photo.path) for photo in added.added] == [taught / "a/new.jpg"]
    write_manifest(added, tmp_path)
    read = read_manifest(tmp_path, root, added.classes, False, added.negatives_root, added.added_root)
    assert read == added


def test_an_encoded_folder_name_is_decoded(dataset: Dataset, tmp_path: Path) -> None:
    added = add_photos(dataset, put(tmp_path / "taught", "cat%2Fdog/new.jpg"))
    assert added.classes == ("a", "b", "cat/dog")


def test_photos_that_the_data_set_has_are_left_out(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, train = (dataset.split(split)[0] for split in ("test", "train"))
    taught = put(tmp_path / "taught", "a/new.jpg")
    put(taught, f"{test.label}/again.jpg", content=test.path)
    put(taught, "b/other.jpg", content=train.path)
    put(taught, "a/none.jpg", content="none/1.jpg")
    assert train.label == test.label == "a"
    added = add_photos(dataset, taught)
    assert [Path(photo.path).name for photo in added.added] == ["new.jpg"]
    reasons = {Path(item.path).name: item.reason for item in added.left_out}
    of_none = next(photo.split for photo in dataset.negatives if photo.path == "none/1.jpg")
    which = ", which has the label"
    assert reasons == {
        "again.jpg": f"is the same photo as {test.path} in test",
        "other.jpg": f"is the same photo as {train.path} in train{which} a; one label is wrong",
        "none.jpg": f"is the same photo as none/1.jpg in {of_none}{which} none; one label is wrong",
    }
    measured = 1 + (of_none != "train")
    printed = capsys.readouterr().out
    assert f"3 files left out, {measured} of them in val or test already, which measure the model" in printed


def test_a_photo_in_two_added_classes_is_left_out(dataset: Dataset, tmp_path: Path) -> None:
    taught = put(tmp_path / "taught", "a/1.jpg", "b/1.jpg", content="the same")
    added = add_photos(dataset, put(taught, "a/new.jpg"))
    assert [Path(photo.path).name for photo in added.added] == ["new.jpg"]
    assert {item.reason for item in added.left_out} == {"the same photo is in several classes: a, b"}


def test_without_negatives_the_added_folder_none_is_left_out(dataset: Dataset, tmp_path: Path) -> None:
    taught = put(tmp_path / "taught", "a/new.jpg", "none/new.jpg")
    added = add_photos(dataset, taught, negatives=False)
    assert [photo.label for photo in added.added] == ["a"] and added.negatives == dataset.negatives
    assert added.left_out == (LeftOut(f"{taught}/none/new.jpg", "is not used: --no-negatives is set"),)


@pytest.mark.parametrize(
    ("files", "fact"),
    [
        ((), "no such folder; give --add"),
        (("1.jpg",), "does not hold class folders; give --add"),
        (("train/a/1.jpg", "test/a/2.jpg"), "does not hold class folders; give --add"),
        (("A/1.jpg",), "A differs from the class a in upper and lower case; rename the folder to a"),
        (("a/0.jpg",), "no photo is new; remove --add, or add photos to the folder"),
        (("a/notes.txt",), "no photo in this class folder"),
    ],
)
def test_a_folder_that_cannot_be_added_raises_photos_error(
    dataset: Dataset, tmp_path: Path, files: tuple[str, ...], fact: str
) -> None:
    with pytest.raises(PhotosError, match=fact) as error:
        add_photos(dataset, put(tmp_path / "taught", *files))
    assert "\n" not in str(error.value)


def test_a_folder_inside_the_photos_raises_photos_error(dataset: Dataset) -> None:
    with pytest.raises(PhotosError, match=r"is inside .*; move it out"):
        add_photos(dataset, put(dataset.root / "taught", "a/new.jpg"))


def test_the_manifest_reads_back_with_added_photos(dataset: Dataset, tmp_path: Path) -> None:
    # A class whose name begins like the path of an added photo.
    dataset = find_photos(put(dataset.root, *(f"--add:/{number}.jpg" for number in range(5))))
    added = add_photos(dataset, put(tmp_path / "taught", "a/new.jpg", "none/new.jpg", "a/notes.txt"))
    write_manifest(added, tmp_path)
    for name in ("photos.csv", "left_out.csv"):  # a packed run must not show the folders of a machine
        assert str(tmp_path) not in (tmp_path / name).read_text()
    assert read_manifest(tmp_path, added.root, added.classes, added_root=added.added_root) == added
    moved = shutil.move(tmp_path / "taught", tmp_path / "moved")
    read = read_manifest(tmp_path, added.root, added.classes, added_root=Path(moved))
    assert [read_verified(read, photo) for photo in read.added] == [b"a/new.jpg", b"none/new.jpg"]
    unknown = read_manifest(tmp_path, added.root, added.classes)
    with pytest.raises(PhotosError, match="restore the photos, give --add, or train again"):
        read_verified(unknown, unknown.added[0])


def test_photos_of_other_folders_are_not_added_ones(dataset: Dataset) -> None:
    assert dataset.added == ()
    assert not dataset.is_added(Photo("/elsewhere/1.jpg", NONE_LABEL, "train", ""))
