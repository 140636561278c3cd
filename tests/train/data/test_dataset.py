from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.preprocess.photo_files import NONE_LABEL
from train.data.dataset import Dataset, LeftOut, PhotosError
from train.data.find_photos import find_photos, with_negatives_of
from train.data.manifest import read_manifest, write_manifest

NOBODY = 65534  # the number of a user without any rights, on Linux


def put(root: Path, *names: str, **content: str) -> Path:
    """Write files with a picture's suffix. The content of each is its name, unless given."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.get("content", name).encode())
    return root


def many(root: Path, classes: str = "ab", count: int = 200) -> Path:
    return put(root, *(f"{label}/{number}.jpg" for label in classes for number in range(count)))


def paths(dataset: Dataset, split: str) -> set[str]:
    return {photo.path for photo in dataset.split(split)}


@pytest.mark.parametrize(("count", "share"), [(200, 30), (60, 9), (61, 9), (33, 5)])
def test_each_class_is_split_exactly_by_share(tmp_path: Path, count: int, share: int) -> None:
    dataset = find_photos(many(tmp_path, count=count))
    assert dataset.classes == ("a", "b")
    assert Counter((photo.label, photo.split) for photo in dataset.photos) == {
        (label, split): number
        for label in "ab"
        for split, number in (("train", count - 2 * share), ("val", share), ("test", share))
    }
    photo = dataset.photos[0]
    assert photo.sha256 == hashlib.sha256(photo.path.encode()).hexdigest()


def test_renaming_moves_no_photo_and_adding_photos_moves_few(tmp_path: Path) -> None:
    before = {photo.sha256: photo.split for photo in find_photos(many(tmp_path)).photos}
    put(tmp_path, *(f"{label}/new{number}.jpg" for label in "ab" for number in range(100)))
    (tmp_path / "a" / "7.jpg").rename(tmp_path / "a" / "renamed.jpg")
    after = {photo.sha256: photo.split for photo in find_photos(tmp_path).photos}
    assert len(after) == 600
    moved = [split for sha256, split in before.items() if after[sha256] != split]
    assert len(moved) < 0.1 * len(before)
    (tmp_path / "a" / "8.jpg").rename(tmp_path / "a" / "9.png")
    assert {photo.sha256: photo.split for photo in find_photos(tmp_path).photos} == after


def test_the_shares_do_not_change_the_order_of_photos(tmp_path: Path) -> None:
    small, large = (find_photos(many(tmp_path), test_share=share) for share in (0.1, 0.2))
    assert paths(small, "test") < paths(large, "test")
    assert paths(small, "val") == paths(large, "val")


def test_the_split_follows_its_seed(tmp_path: Path) -> None:
    many(tmp_path)
    assert find_photos(tmp_path, split_seed=1) == find_photos(tmp_path, split_seed=1)
    assert paths(find_photos(tmp_path), "test") != paths(find_photos(tmp_path, split_seed=1), "test")


def test_split_folders_are_kept_and_val_is_taken_from_train(tmp_path: Path) -> None:
    many(tmp_path / "train")
    many(tmp_path / "test", count=0)
    put(tmp_path, "test/a/x.jpg", "test/b/y.jpg", "notes/z.jpg")
    dataset = find_photos(tmp_path)
    assert paths(dataset, "test") == {"test/a/x.jpg", "test/b/y.jpg"}
    assert all(path.startswith("train/") for path in paths(dataset, "val"))
    assert len(dataset.split("val")) == 60
    assert dataset.left_out == (LeftOut("notes/", "is beside train/ but is not val/ or test/"),)
    put(tmp_path, "val/a/v.jpg")
    assert paths(find_photos(tmp_path), "val") == {"val/a/v.jpg"}


def test_split_folders_may_have_other_names(tmp_path: Path) -> None:
    many(tmp_path / "Train")
    put(tmp_path, "Validation/a/v.jpg", "TEST/a/x.jpg", "TEST/b/y.jpg")
    dataset = find_photos(tmp_path)
    assert dataset.classes == ("a", "b")
    assert paths(dataset, "val") == {"Validation/a/v.jpg"}
    assert paths(dataset, "test") == {"TEST/a/x.jpg", "TEST/b/y.jpg"}
    put(tmp_path, "valid/a/w.jpg")
    with pytest.raises(PhotosError, match="Validation/ and valid/ are the same split"):
        find_photos(tmp_path)


@pytest.mark.parametrize("leftover", ["train/a/3.jpg", "train/new/3.jpg", "Train/a/deep/3.jpg"])
def test_a_train_folder_beside_class_folders_raises_photos_error(tmp_path: Path, leftover: str) -> None:
    put(tmp_path, "a/1.jpg", "b/2.jpg", leftover)
    with pytest.raises(PhotosError, match=r"class folders \(a/, b/\)") as error:
        find_photos(tmp_path)
    assert leftover.rsplit("/", 1)[0].removesuffix("/deep") in str(error.value)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert find_photos(put(tmp_path, "train/1.jpg", "train/2.jpg", "bus/1.jpg", "bus/2.jpg")).classes == (
        "bus",
        "train",
    )


def test_pictures_beside_the_class_folders_of_a_split_are_left_out(tmp_path: Path) -> None:
    many(tmp_path / "train")
    put(tmp_path, "train/loose.jpg", "test/a/1.jpg", "test/b/2.jpg", "test/loose.png")
    dataset = find_photos(tmp_path)
    assert dataset.classes == ("a", "b") and paths(dataset, "test") == {"test/a/1.jpg", "test/b/2.jpg"}
    reason = "is not in a class folder"
    assert dataset.left_out == (LeftOut("test/loose.png", reason), LeftOut("train/loose.jpg", reason))
    put(tmp_path, "beside.jpg", "notes.txt")
    assert find_photos(tmp_path).left_out == (LeftOut("beside.jpg", reason), *dataset.left_out)


def test_pictures_beside_the_class_folders_are_left_out(tmp_path: Path) -> None:
    many(tmp_path)
    put(tmp_path, "loose.jpg", "notes.txt")
    assert find_photos(tmp_path).left_out == (LeftOut("loose.jpg", "is not in a class folder"),)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_few_photos_leave_one_to_train_on(tmp_path: Path, count: int) -> None:
    dataset = find_photos(many(tmp_path, count=count))
    for label in "ab":
        split = Counter(photo.split for photo in dataset.photos if photo.label == label)
        assert split["train"] >= 1
        assert (split["val"] >= 1) == (count >= 3) and (split["test"] >= 1) == (count >= 2)


def test_limit_is_per_class_and_split_folder(tmp_path: Path) -> None:
    many(tmp_path / "train")
    put(tmp_path, *(f"test/{label}/t{number}.jpg" for label in "ab" for number in range(30)))
    dataset = find_photos(tmp_path, limit=20)
    assert Counter(photo.label for photo in dataset.split("test")) == {"a": 20, "b": 20}
    assert len(dataset.split("train")) + len(dataset.split("val")) == 40
    assert len(dataset.split("train")) == 34


def test_system_files_are_ignored_and_other_files_are_listed(tmp_path: Path) -> None:
    many(tmp_path, count=3)
    put(tmp_path, "a/.DS_Store", "a/._1.jpg", "a/Thumbs.db", ".git/x.jpg", "a/film.mov", "readme.txt")
    put(tmp_path, "a/@eaDir/1.jpg", "$RECYCLE.BIN/2.jpg", "lost+found/3.jpg", "#recycle/4.jpg")
    (tmp_path / "System Volume Information").mkdir()
    dataset = find_photos(tmp_path)
    assert len(dataset.photos) == 6
    assert dataset.left_out == (LeftOut("a/film.mov", "is not a picture by its file name"),)


def test_nested_and_linked_photos_are_found(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "1.jpg", "2.JPG")
    root = put(tmp_path / "photos", "a/deep/er/1.png", "b/3.jpg")
    (root / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "4.jpg").symlink_to(root / "a" / "deep" / "er" / "1.png")
    (root / "a" / "round").symlink_to(root / "a")
    dataset = find_photos(root)
    assert {photo.path for photo in dataset.photos} == {
        "a/4.jpg",
        "b/3.jpg",
        "b/linked/1.jpg",
        "b/linked/2.JPG",
    }
    assert dataset.left_out == (LeftOut("a/deep/er/1.png", "is the same photo as a/4.jpg"),)


def test_class_names_may_be_in_any_script(tmp_path: Path) -> None:
    # The second spelling of é is macOS's, of two characters: the same class.
    put(
        tmp_path,
        "train/ромашка/1.jpg",
        "train/薔薇/2.jpg",
        "train/pens\u00e9e/3.jpg",
        "test/pense\u0301e/4.jpg",
    )
    dataset = find_photos(tmp_path)
    assert dataset.classes == ("pens\u00e9e", "ромашка", "薔薇")
    assert [photo.label for photo in dataset.split("test")] == ["pens\u00e9e"]


def test_a_copy_in_the_same_class_is_left_out(tmp_path: Path) -> None:
    put(many(tmp_path, count=4), "a/copy.jpg", content="a/1.jpg")
    dataset = find_photos(tmp_path)
    assert dataset.left_out == (LeftOut("a/copy.jpg", "is the same photo as a/1.jpg"),)


def test_a_photo_in_two_classes_is_left_out_of_both(tmp_path: Path) -> None:
    put(many(tmp_path, count=4), "b/copy.jpg", content="a/1.jpg")
    dataset = find_photos(tmp_path)
    reason = "the same photo is in several classes: a, b"
    assert dataset.left_out == (LeftOut("a/1.jpg", reason), LeftOut("b/copy.jpg", reason))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def without_root() -> Iterator[None]:
    """Within the block, this process has the rights of another user: root reads and enters everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_file_without_permission_is_left_out(open_folder: Path) -> None:
    many(open_folder, count=4)
    (open_folder / "a/1.jpg").chmod(0)
    with without_root():
        assert find_photos(open_folder).left_out == (LeftOut("a/1.jpg", "Permission denied"),)


def test_a_dangling_link_is_left_out(tmp_path: Path) -> None:
    many(tmp_path, count=4)
    (tmp_path / "a/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert find_photos(tmp_path).left_out == (LeftOut("a/gone.jpg", "No such file or directory"),)


def test_the_same_photo_in_two_given_splits_names_both(tmp_path: Path) -> None:
    put(many(tmp_path / "train", count=4), "../test/a/copy.jpg", content="a/1.jpg")
    with pytest.raises(PhotosError, match=r"test/a/copy\.jpg.*two splits") as error:
        find_photos(tmp_path)
    assert "train/a/1.jpg" in str(error.value)


def test_many_photos_in_two_splits_are_one_error(tmp_path: Path) -> None:
    many(tmp_path / "train", count=4)
    for number in (1, 2, 3):
        put(tmp_path, f"test/a/copy{number}.jpg", content=f"a/{number}.jpg")
    with pytest.raises(PhotosError, match=r"two splits \(2 more, such as test/a/copy"):
        find_photos(tmp_path)


def test_a_folder_none_beside_one_in_a_split_is_reported(tmp_path: Path) -> None:
    put(many(tmp_path / "train", count=4), "../none/1.jpg", "none/2.jpg")
    dataset = find_photos(tmp_path)
    assert [photo.path for photo in dataset.negatives] == ["train/none/2.jpg"]
    assert [item.path for item in dataset.left_out] == ["none/"]


@pytest.mark.parametrize(
    ("files", "fact"),
    [
        ((), "no class.*at least 2"),
        (("1.jpg", "2.jpg"), "no class.*at least 2"),
        (("a/1.jpg",), "found a, .*at least 2"),
        (("a/1.jpg", "b/.hidden.jpg"), "b: no photo in this class folder"),
        (
            ("a/1.jpg", "b/1.CR2", "b/2.NEF"),
            r"b: no photo in this class folder, and b/1\.CR2 is not a picture by its file name; add some",
        ),
        (("train/a/1.jpg", "train/b/2.jpg", "test/c/3.jpg"), "class c is in test/ but not in train/"),
        (
            ("train/a/1.jpg", "train/b/2.jpg", "test/3.jpg"),
            "test: holds no class folders; move .* test/CLASS",
        ),
        (("images/a/1.jpg", "images/b/2.jpg", "test/a/3.jpg"), "test/ holds class folders, but no folder tr"),
        (
            ("train/1.jpg", "valid/a/2.jpg", "valid/b/3.jpg"),
            "valid/ holds class folders, but no folder train",
        ),
    ],
)
def test_a_folder_that_cannot_be_trained_on_raises_photos_error(
    tmp_path: Path, files: tuple[str, ...], fact: str
) -> None:
    with pytest.raises(PhotosError, match=fact) as error:
        find_photos(put(tmp_path, *files))
    assert "\n" not in str(error.value)


def test_a_class_without_an_unambiguous_photo_raises_photos_error(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "a/2.jpg", "c/3.jpg")
    put(tmp_path, "b/1.jpg", content="a/1.jpg")
    reason = r"class b has no readable training photo: 1 left out, such as b/1\.jpg: the same photo is in"
    with pytest.raises(PhotosError, match=reason):
        find_photos(tmp_path)


def test_a_wrong_path_raises_photos_error(tmp_path: Path) -> None:
    with pytest.raises(PhotosError, match="no such folder"):
        find_photos(tmp_path / "nowhere")
    put(tmp_path, "a.jpg")
    with pytest.raises(PhotosError, match="is a file"):
        find_photos(tmp_path / "a.jpg")
    with pytest.raises(PhotosError, match="File name too long"):
        find_photos(tmp_path / (300 * "x"))


def test_a_class_without_a_readable_photo_raises_photos_error(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "c/3.jpg")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(PhotosError, match="class b has no readable photo"):
        find_photos(tmp_path)


def test_a_class_name_that_is_not_printable_raises_photos_error(tmp_path: Path) -> None:
    with pytest.raises(PhotosError, match=r"'two\\nlines' is too long or not printable") as error:
        find_photos(put(tmp_path, "a/1.jpg", "two\nlines/2.jpg"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("classes", "fact"),
    [
        (("Unknown", "a"), "unknown is the answer"),
        (("a", "Rose", "rose"), "differ in upper and lower case only"),
    ],
)
def test_a_label_that_a_device_cannot_teach_raises_photos_error(
    tmp_path: Path, classes: tuple[str, ...], fact: str
) -> None:
    with pytest.raises(PhotosError, match=fact):
        find_photos(put(tmp_path, *(f"{label}/{label}.jpg" for label in classes)))


def test_other_names_of_splits_are_read(tmp_path: Path) -> None:
    root = put(
        tmp_path, *(f"{split}/{label}/{split}.jpg" for split in ("Training", "Testing") for label in "ab")
    )
    found = find_photos(root)
    assert found.classes == ("a", "b") and len(found.split("test")) == 2


def test_class_names_are_checked_before_photos_are_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashed(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("train.data.find_photos.file_sha256", hashed)
    root = put(tmp_path / "long", "train/a/1.jpg", "train/b/2.jpg", f"test/{201 * 'c'}/3.jpg")
    with pytest.raises(PhotosError, match=r"c' is too long or not printable"):
        find_photos(root)
    for number in range(10_001):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
    with pytest.raises(PhotosError, match=r"over 10,000 classes"):
        find_photos(tmp_path / "many")


def test_the_longest_label_of_a_model_file_is_accepted(tmp_path: Path) -> None:
    assert find_photos(put(tmp_path, f"{200 * 'a'}/1.jpg", "b/2.jpg")).classes == (200 * "a", "b")


def test_pipes_and_bad_links_are_left_out(tmp_path: Path) -> None:
    many(tmp_path, count=4)
    os.mkfifo(tmp_path / "a" / "pipe.jpg")  # opened, it would wait for a writer
    (tmp_path / "a" / "long.jpg").symlink_to(300 * "x")
    assert find_photos(tmp_path).left_out == (
        LeftOut("a/long.jpg", "File name too long"),
        LeftOut("a/pipe.jpg", "is not a regular file"),
    )


def test_folders_may_be_nested_deeper_than_the_recursion_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put(tmp_path / "photos", "a/1.jpg", "b/2.jpg")
    monkeypatch.chdir(root / "a")
    for _ in range(1200):
        Path("d").mkdir()
        os.chdir("d")
    Path("3.jpg").write_text("deep")
    monkeypatch.chdir(tmp_path)
    try:
        assert max(photo.path.count("/") for photo in find_photos(root).photos) == 1201
    finally:
        subprocess.run(["rm", "-r", root], check=True)  # pytest's own way recurses


def test_links_enter_each_folder_once_and_stay_in_the_class(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", "train/a/1.jpg", "train/b/2.jpg", "test/b/3.jpg")
    for level in range(12):
        (tmp_path / f"{level}").mkdir()
        for link in "xy":
            (tmp_path / f"{level}" / link).symlink_to(tmp_path / f"{level + 1}")
    put(tmp_path / "12", "4.jpg")
    (root / "train" / "a" / "maze").symlink_to(tmp_path / "0")
    for name, target in (("root", root), ("split", root / "train")):
        (root / "train" / "b" / name).symlink_to(target)
    dataset = find_photos(root, val_share=0)
    maze = f"train/a/maze/{'/'.join(12 * 'x')}/4.jpg"
    assert [photo.path for photo in dataset.photos] == [
        "test/b/3.jpg",
        "train/a/1.jpg",
        maze,
        "train/b/2.jpg",
    ]
    assert not dataset.left_out


def test_control_characters_in_names_are_escaped(tmp_path: Path) -> None:
    root = put(tmp_path / "two\n\x1b[2J", "a/1.jpg", "b/\x1b]0;.jpg")
    (root / "b" / "same.jpg").write_bytes((root / "b" / "\x1b]0;.jpg").read_bytes())
    assert find_photos(root).left_out == (LeftOut("b/same.jpg", r"is the same photo as b/\x1b]0;.jpg"),)
    (root / "a" / "1.jpg").unlink()
    with pytest.raises(PhotosError, match="no photo in this class folder") as error:
        find_photos(root)
    assert str(error.value).isprintable()


def test_folders_without_permission_are_left_out_or_raise(open_folder: Path) -> None:
    root, closed = put(many(open_folder / "photos", count=4), "c/5.jpg"), open_folder / "closed"
    put(closed, "6.jpg")
    (root / "a" / "linked.jpg").symlink_to(closed / "6.jpg")
    (root / "a" / "more").symlink_to(closed / "inside")
    closed.chmod(0o000)
    (root / "c").chmod(0o444)
    try:
        with without_root():
            with pytest.raises(PhotosError, match="class c has no readable photo"):
                find_photos(root)
            with pytest.raises(PhotosError, match="closed: Permission denied"):
                find_photos(closed)
            with pytest.raises(PhotosError, match="inside: Permission denied"):
                find_photos(closed / "inside")
        (root / "c").chmod(0o755)
        with without_root():
            assert find_photos(root).left_out == (
                LeftOut("a/linked.jpg", "Permission denied"),
                LeftOut("a/more", "Permission denied"),
            )
    finally:
        for path in (closed, root / "c"):
            path.chmod(0o755)


def test_leaving_out_the_last_photo_of_a_class_raises_photos_error(tmp_path: Path) -> None:
    dataset = find_photos(put(tmp_path, "a/1.jpg", "b/2.jpg", "b/3.jpg"))
    with pytest.raises(PhotosError, match="class a has no readable training photo"):
        dataset.without([LeftOut("a/1.jpg", "is damaged")])


def test_the_manifest_reads_back(tmp_path: Path) -> None:
    root = put(many(tmp_path / "photos", count=5), "a/film.mov", '薔薇, "red"/x.jpg')
    dataset = find_photos(root)
    write_manifest(dataset, tmp_path)
    assert read_manifest(tmp_path, dataset.root, dataset.classes) == dataset


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_a_file_name_that_is_not_utf8_reads_back(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", "a/1.jpg", "a/3.jpg", "b/2.jpg")
    (root / "a" / "3.jpg").rename(root / os.fsdecode(b"a/caf\xe9.jpg"))
    dataset = find_photos(root)
    assert len(dataset.photos) == 3
    write_manifest(dataset, tmp_path)
    assert read_manifest(tmp_path, dataset.root, dataset.classes) == dataset


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_a_file_name_with_line_ends_reads_back(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", "a/1.jpg", "a/two\rlines.jpg", "a/\r\n\n\r.jpg", "b/2.jpg", "b/\r.mov")
    dataset = find_photos(root)
    write_manifest(dataset, tmp_path)
    assert read_manifest(tmp_path, dataset.root, dataset.classes) == dataset
    ordinary = [photo for photo in dataset.photos if photo.path == "a/1.jpg"]
    assert f"\na/1.jpg,a,{ordinary[0].split},{ordinary[0].sha256}\n" in (
        (tmp_path / "photos.csv").read_bytes().decode()
    )


def test_the_hash_of_a_data_set_depends_on_content_only(tmp_path: Path) -> None:
    dataset = find_photos(many(tmp_path / "one", count=9))
    (tmp_path / "one" / "a" / "1.jpg").rename(tmp_path / "one" / "a" / "x.jpg")
    moved = find_photos((tmp_path / "one").rename(tmp_path / "two"))
    assert moved.sha256 == dataset.sha256
    put(tmp_path, "two/a/1.jpg", content="another")
    assert find_photos(tmp_path / "two").sha256 != dataset.sha256


def with_none(root: Path, *folders: str, count: int = 20) -> Path:
    """Photos of two classes, and photos in each of `folders`, all with different bytes."""
    many(root, count=20)
    return put(root, *(f"{folder}/{number}.jpg" for folder in folders for number in range(count)))


@pytest.mark.parametrize("name", ["none", "None", "NONE"])
def test_a_folder_none_holds_negatives_and_is_no_class(tmp_path: Path, name: str) -> None:
    dataset = find_photos(with_none(tmp_path, f"{name}/deep"))
    assert dataset.classes == ("a", "b") and len(dataset.photos) == 40
    assert Counter(photo.split for photo in dataset.negatives) == {"train": 14, "val": 3, "test": 3}
    assert {photo.label for photo in dataset.negatives} == {NONE_LABEL}
    assert all(photo.path.startswith(f"{name}/deep/") for photo in dataset.negatives_of("val"))
    assert not dataset.left_out


def test_negatives_are_stratified_apart_from_the_classes(tmp_path: Path) -> None:
    plain, dataset = find_photos(many(tmp_path, count=20)), find_photos(with_none(tmp_path, "none"))
    assert dataset.photos == plain.photos
    assert dataset.sha256 != plain.sha256
    assert find_photos(tmp_path, negatives=False).sha256 == plain.sha256


def test_split_folders_may_hold_negatives(tmp_path: Path) -> None:
    with_none(tmp_path / "train", "none")
    put(tmp_path, "test/a/x.jpg", "test/b/y.jpg", "test/None/z.jpg")
    dataset = find_photos(tmp_path)
    assert [photo.path for photo in dataset.negatives_of("test")] == ["test/None/z.jpg"]
    assert len(dataset.negatives_of("val")) == 3 and len(dataset.negatives_of("train")) == 17


@pytest.mark.parametrize("test_folder", [True, False])
def test_negatives_may_be_beside_the_split_folders(tmp_path: Path, test_folder: bool) -> None:
    many(tmp_path / "train", count=20)
    put(tmp_path, *(f"none/{number}.jpg" for number in range(20)))
    if test_folder:
        put(tmp_path, "test/a/x.jpg", "test/b/y.jpg")
    dataset = find_photos(tmp_path)
    assert Counter(photo.split for photo in dataset.negatives) == {"train": 14, "val": 3, "test": 3}
    assert dataset.negatives_root == tmp_path / "none" and not dataset.left_out
    assert not find_photos(tmp_path, negatives=False).negatives


def test_negatives_may_be_in_another_folder(tmp_path: Path) -> None:
    root = with_none(tmp_path / "photos", "none")
    frames = put(tmp_path / "frames", "notes.txt", *(f"monday/{number}.png" for number in range(10)))
    dataset = find_photos(root, none=frames, val_share=0.2, test_share=0.1)
    assert dataset.negatives_root == frames and len(dataset.negatives) == 10
    assert len(dataset.negatives_of("val")) == 2 and len(dataset.negatives_of("test")) == 1
    assert all((dataset.root / photo.path).is_file() for photo in dataset.negatives)
    assert dataset.left_out == (
        LeftOut(f"{frames}/notes.txt", "is not a picture by its file name"),
        LeftOut("none/", "is not used: --none gives another folder"),
    )


def test_a_class_folder_may_be_named_as_the_folder_of_negatives(tmp_path: Path) -> None:
    root = put(with_none(tmp_path), "c/1.jpg", "c/2.jpg")
    dataset = find_photos(root, none=root / "c")
    assert dataset.classes == ("a", "b") and dataset.negatives_root is None
    assert {photo.path for photo in dataset.negatives} == {"c/1.jpg", "c/2.jpg"}


def test_a_class_folder_of_negatives_replaces_the_folder_none(tmp_path: Path) -> None:
    root = put(with_none(tmp_path, "none"), "c/1.jpg", "c/2.jpg")
    dataset = find_photos(root, none=root / "c")
    assert dataset.classes == ("a", "b")
    assert {photo.path for photo in dataset.negatives} == {"c/1.jpg", "c/2.jpg"}
    assert dataset.left_out == (LeftOut("none/", "is not used: --none gives another folder"),)
    assert len(find_photos(root, none=root / "none").negatives) == 20, "the folder none may be named too"


def test_more_negatives_keep_the_earlier_ones_in_their_splits(tmp_path: Path) -> None:
    before = find_photos(with_none(tmp_path, "none"))
    put(tmp_path, *(f"none/new{number}.jpg" for number in range(100)))
    after = with_negatives_of(before, tmp_path / "none", {"val": 0.15, "test": 0.15}, 0)
    splits = {photo.sha256: photo.split for photo in after.negatives}
    assert {photo.sha256: splits[photo.sha256] for photo in before.negatives} == {
        photo.sha256: photo.split for photo in before.negatives
    }
    assert Counter(splits.values()) == {"train": 84, "val": 18, "test": 18}


def test_empty_files_are_not_copies_of_each_other(tmp_path: Path) -> None:
    many(tmp_path / "train", count=20)
    put(tmp_path, "test/a/x.jpg", "test/b/y.jpg")
    put(tmp_path, "train/a/empty.jpg", "test/b/empty.jpg", content="")
    dataset = find_photos(tmp_path)
    assert [(item.path, item.reason) for item in dataset.left_out] == [
        ("test/b/empty.jpg", "is empty"),
        ("train/a/empty.jpg", "is empty"),
    ]


def test_without_negatives_the_folder_none_is_left_out(tmp_path: Path) -> None:
    dataset = find_photos(with_none(tmp_path, "none"), negatives=False)
    assert dataset.classes == ("a", "b") and not dataset.negatives
    assert dataset.left_out == (LeftOut("none/", "is not used: --no-negatives is set"),)


def test_the_limit_applies_to_negatives(tmp_path: Path) -> None:
    dataset = find_photos(with_none(tmp_path, "none"), limit=10)
    assert len(dataset.negatives) == 10 and len(dataset.photos) == 20


def test_a_negative_that_is_a_photo_of_a_class_is_left_out(tmp_path: Path) -> None:
    put(with_none(tmp_path, "none"), "none/copy.jpg", content="a/1.jpg")
    put(tmp_path, "none/again.jpg", content="none/1.jpg")
    dataset = find_photos(tmp_path)
    assert len(dataset.photos) == 40 and len(dataset.negatives) == 20
    assert dataset.left_out == (
        LeftOut("none/again.jpg", "is the same photo as none/1.jpg"),
        LeftOut("none/copy.jpg", "is the same photo as a/1.jpg, so it does not show none of the classes"),
    )


@pytest.mark.parametrize(
    ("files", "none", "fact"),
    [
        (("a/1.jpg", "b/2.jpg", "none/notes.txt"), None, "none: no photo in this folder of photos of none"),
        (("a/1.jpg", "b/2.jpg"), "nowhere", "nowhere: no such folder; give --none a folder"),
        (("a/1.jpg", "b/2.jpg"), "a/1.jpg", "1.jpg is a file; give --none"),
        (("a/1.jpg", "none/2.jpg"), None, r"found a, .*\(none is not a class: rename its folder if it is\)"),
    ],
)
def test_negatives_that_cannot_be_used_raise_photos_error(
    tmp_path: Path, files: tuple[str, ...], none: str | None, fact: str
) -> None:
    root = put(tmp_path, *files)
    with pytest.raises(PhotosError, match=fact) as error:
        find_photos(root, none=root / none if none else None)
    assert "\n" not in str(error.value)


def test_negatives_that_all_show_a_class_raise_photos_error(tmp_path: Path) -> None:
    root = many(tmp_path / "photos", count=3)
    put(tmp_path / "out", "1.jpg", content="a/1.jpg")
    with pytest.raises(PhotosError, match=r"out: every photo of none of the classes is also"):
        find_photos(root, none=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PhotosError, match=r"--none .*empty: no readable photo in this folder"):
        find_photos(root, none=tmp_path / "empty")


def test_leaving_out_a_negative_keeps_the_photos(tmp_path: Path) -> None:
    dataset = find_photos(with_none(tmp_path, "none"))
    fewer = dataset.without([LeftOut("none/1.jpg", "is damaged")])
    assert len(fewer.negatives) == 19 and fewer.photos == dataset.photos
    assert fewer.left_out == (LeftOut("none/1.jpg", "is damaged"),)


def test_the_manifest_reads_back_with_negatives(tmp_path: Path) -> None:
    root = with_none(tmp_path / "photos", "none")
    outside = put(tmp_path / "frames", "1.jpg", "2.jpg", "3.jpg", "notes.txt")
    put(outside, "copy.jpg", content="1.jpg")
    for none in (None, outside):
        dataset = find_photos(root, none=none)
        write_manifest(dataset, tmp_path)
        for name in ("photos.csv", "left_out.csv"):  # a packed run must not show the folders of a machine
            assert str(tmp_path) not in (tmp_path / name).read_text()
        read = read_manifest(tmp_path, dataset.root, dataset.classes, negatives_root=dataset.negatives_root)
        assert read == dataset
    moved = read_manifest(tmp_path, dataset.root, dataset.classes, negatives_root=tmp_path / "moved")
    assert {photo.path for photo in moved.negatives} == {f"{tmp_path}/moved/{number}.jpg" for number in "123"}


@pytest.mark.parametrize(
    ("names", "is_named"),
    [
        (("pets/cat/1.jpg", "pets/dog/2.jpg", "pets/3.jpg"), True),
        (("pets/cat/1.jpg", "pets/2.jpg"), False),
        (("pets/cat/1.jpg", "pets/cat/2.jpg"), False),
    ],
)
def test_class_folders_one_level_deeper_are_named(
    names: tuple[str, ...], is_named: bool, tmp_path: Path
) -> None:
    with pytest.raises(PhotosError, match="found pets, but training needs at least 2 classes") as error:
        find_photos(put(tmp_path, *names))
    assert str(error.value).endswith(f"give {tmp_path / 'pets'}") == is_named
