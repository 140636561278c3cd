from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from train.data.dataset import Dataset, LeftOut, PhotosError, find_photos, read_manifest, write_manifest


def put(root: Path, *names: str, **content: str) -> Path:
    """Write files that are photos by name; each file's content is its name unless given."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.get("content", name).encode())
    return root


def many(root: Path, classes: str = "ab", count: int = 200) -> Path:
    return put(root, *(f"{label}/{number}.jpg" for label in classes for number in range(count)))


def paths(dataset: Dataset, split: str) -> set[str]:
    return {photo.path for photo in dataset.split(split)}


def test_class_folders_are_split_by_share(tmp_path: Path) -> None:
    dataset = find_photos(many(tmp_path))
    assert dataset.classes == ("a", "b")
    counts = Counter(photo.split for photo in dataset.photos)
    assert sum(counts.values()) == 400
    assert 40 <= counts["val"] <= 80 and 40 <= counts["test"] <= 80
    photo = dataset.photos[0]
    assert photo.sha256 == hashlib.sha256(photo.path.encode()).hexdigest()


def test_adding_and_renaming_photos_moves_none_of_the_others(tmp_path: Path) -> None:
    before = {photo.sha256: photo.split for photo in find_photos(many(tmp_path)).photos}
    put(tmp_path, *(f"{label}/new{number}.jpg" for label in "ab" for number in range(100)))
    (tmp_path / "a" / "7.jpg").rename(tmp_path / "a" / "renamed.jpg")
    after = {photo.sha256: photo.split for photo in find_photos(tmp_path).photos}
    assert len(after) == 600
    assert before.items() <= after.items()


def test_the_split_follows_its_seed(tmp_path: Path) -> None:
    many(tmp_path)
    assert find_photos(tmp_path, split_seed=1) == find_photos(tmp_path, split_seed=1)
    assert paths(find_photos(tmp_path), "test") != paths(find_photos(tmp_path, split_seed=1), "test")


def test_given_splits_are_kept_and_val_is_cut_from_train(tmp_path: Path) -> None:
    many(tmp_path / "train")
    many(tmp_path / "test", count=0)
    put(tmp_path, "test/a/x.jpg", "test/b/y.jpg", "notes/z.jpg")
    dataset = find_photos(tmp_path)
    assert paths(dataset, "test") == {"test/a/x.jpg", "test/b/y.jpg"}
    assert all(path.startswith("train/") for path in paths(dataset, "val"))
    assert 40 <= len(dataset.split("val")) <= 80
    assert dataset.left_out == (LeftOut("notes/", "beside train/, but neither val/ nor test/"),)
    put(tmp_path, "val/a/v.jpg")
    assert paths(find_photos(tmp_path), "val") == {"val/a/v.jpg"}


def test_splits_by_other_names(tmp_path: Path) -> None:
    many(tmp_path / "Train")
    put(tmp_path, "Validation/a/v.jpg", "TEST/a/x.jpg", "TEST/b/y.jpg")
    dataset = find_photos(tmp_path)
    assert dataset.classes == ("a", "b")
    assert paths(dataset, "val") == {"Validation/a/v.jpg"}
    assert paths(dataset, "test") == {"TEST/a/x.jpg", "TEST/b/y.jpg"}
    put(tmp_path, "valid/a/w.jpg")
    with pytest.raises(PhotosError, match="Validation/ and valid/ are one split; keep one"):
        find_photos(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert find_photos(put(tmp_path, "train/1.jpg", "train/2.jpg", "bus/1.jpg", "bus/2.jpg")).classes == (
        "bus",
        "train",
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_few_photos_leave_one_to_train_on(tmp_path: Path, count: int) -> None:
    dataset = find_photos(many(tmp_path, count=count))
    for label in "ab":
        split = Counter(photo.split for photo in dataset.photos if photo.label == label)
        assert split["train"] >= 1
        assert (split["val"] >= 1) == (count >= 3) and (split["test"] >= 1) == (count >= 2)


def test_limit_keeps_so_many_of_each_given_split(tmp_path: Path) -> None:
    many(tmp_path / "train")
    put(tmp_path, *(f"test/{label}/t{number}.jpg" for label in "ab" for number in range(30)))
    dataset = find_photos(tmp_path, limit=20)
    assert Counter(photo.label for photo in dataset.split("test")) == {"a": 20, "b": 20}
    assert len(dataset.split("train")) + len(dataset.split("val")) == 40
    assert len(dataset.split("train")) > 25  # what is kept is not what would have become val


def test_litter_is_passed_over_and_other_files_are_listed(tmp_path: Path) -> None:
    many(tmp_path, count=3)
    put(tmp_path, "a/.DS_Store", "a/._1.jpg", "a/Thumbs.db", ".git/x.jpg", "a/film.mov", "readme.jpg")
    dataset = find_photos(tmp_path)
    assert len(dataset.photos) == 6
    assert dataset.left_out == (LeftOut("a/film.mov", "not a picture by its name"),)


def test_photos_lie_deeper_and_behind_links(tmp_path: Path) -> None:
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
    assert dataset.left_out == (LeftOut("a/deep/er/1.png", "the same photo as a/4.jpg"),)


def test_classes_in_any_script(tmp_path: Path) -> None:
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


def test_duplicates_are_left_out(tmp_path: Path) -> None:
    put(many(tmp_path, count=4), "a/copy.jpg", content="a/1.jpg")
    dataset = find_photos(tmp_path)
    assert dataset.left_out == (LeftOut("a/copy.jpg", "the same photo as a/1.jpg"),)


def test_a_photo_in_two_classes_is_left_out_of_both(tmp_path: Path) -> None:
    put(many(tmp_path, count=4), "b/copy.jpg", content="a/1.jpg")
    dataset = find_photos(tmp_path)
    reason = "the same photo in several classes: a, b"
    assert dataset.left_out == (LeftOut("a/1.jpg", reason), LeftOut("b/copy.jpg", reason))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_left_out(tmp_path: Path) -> None:
    many(tmp_path, count=4)
    (tmp_path / "a/1.jpg").chmod(0)
    assert find_photos(tmp_path).left_out == (LeftOut("a/1.jpg", "Permission denied"),)


def test_a_dangling_link_is_left_out(tmp_path: Path) -> None:
    many(tmp_path, count=4)
    (tmp_path / "a/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert find_photos(tmp_path).left_out == (LeftOut("a/gone.jpg", "No such file or directory"),)


def test_the_same_photo_in_two_given_splits_names_both(tmp_path: Path) -> None:
    put(many(tmp_path / "train", count=4), "../test/a/copy.jpg", content="a/1.jpg")
    with pytest.raises(PhotosError, match=r"test/a/copy.jpg.*same photo in two splits") as error:
        find_photos(tmp_path)
    assert "train/a/1.jpg" in str(error.value)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ((), "no class, and 2 are needed"),
        (("1.jpg", "2.jpg"), "no class, and 2 are needed"),
        (("a/1.jpg",), "holds a, and 2 are needed"),
        (("a/1.jpg", "b/.hidden.jpg"), "b: no photo in this class folder"),
        (("a/1.jpg", "b/notes.txt"), "b: no photo in this class folder"),
        (("train/a/1.jpg", "train/b/2.jpg", "test/c/3.jpg"), "class c is in test/ but not in train/"),
    ],
)
def test_folders_that_cannot_be_trained_on(tmp_path: Path, files: tuple[str, ...], says: str) -> None:
    with pytest.raises(PhotosError, match=says) as error:
        find_photos(put(tmp_path, *files))
    assert "\n" not in str(error.value)


def test_a_class_whose_photos_all_contradict_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "a/2.jpg", "c/3.jpg")
    put(tmp_path, "b/1.jpg", content="a/1.jpg")
    with pytest.raises(PhotosError, match="class b has no readable photo"):
        find_photos(tmp_path)


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(PhotosError, match="no such folder"):
        find_photos(tmp_path / "nowhere")
    put(tmp_path, "a.jpg")
    with pytest.raises(PhotosError, match="is a file"):
        find_photos(tmp_path / "a.jpg")
    with pytest.raises(PhotosError, match="File name too long; give a folder that holds"):
        find_photos(tmp_path / (300 * "x"))


def test_a_class_that_cannot_be_read_at_all_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "c/3.jpg")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(PhotosError, match="class b has no readable photo"):
        find_photos(tmp_path)


def test_a_class_that_no_terminal_can_show_is_named(tmp_path: Path) -> None:
    with pytest.raises(PhotosError, match=r"'two\\nlines' is too long or not all printable") as error:
        find_photos(put(tmp_path, "a/1.jpg", "two\nlines/2.jpg"))
    assert "\n" not in str(error.value)


def test_what_no_model_can_carry_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashed(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("train.data.dataset.file_sha256", hashed)
    root = put(tmp_path / "long", "train/a/1.jpg", "train/b/2.jpg", f"test/{201 * 'c'}/3.jpg")
    with pytest.raises(PhotosError, match=r"c' is too long or not all printable; rename the folder"):
        find_photos(root)
    for number in range(10_001):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
    with pytest.raises(PhotosError, match=r"holds over 10,000 classes, more than a model can tell"):
        find_photos(tmp_path / "many")


def test_a_label_as_long_as_a_model_carries_is_taken(tmp_path: Path) -> None:
    assert find_photos(put(tmp_path, f"{200 * 'a'}/1.jpg", "b/2.jpg")).classes == (200 * "a", "b")


def test_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    many(tmp_path, count=4)
    os.mkfifo(tmp_path / "a" / "pipe.jpg")  # opened, it would wait for a writer
    (tmp_path / "a" / "long.jpg").symlink_to(300 * "x")
    assert find_photos(tmp_path).left_out == (
        LeftOut("a/long.jpg", "File name too long"),
        LeftOut("a/pipe.jpg", "is not a regular file"),
    )


def test_folders_lie_as_deep_as_they_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_links_lead_into_a_folder_once_and_not_out_of_the_class(tmp_path: Path) -> None:
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


def test_names_do_not_command_the_terminal(tmp_path: Path) -> None:
    root = put(tmp_path / "two\n\x1b[2J", "a/1.jpg", "b/\x1b]0;.jpg")
    (root / "b" / "same.jpg").write_bytes((root / "b" / "\x1b]0;.jpg").read_bytes())
    assert find_photos(root).left_out == (LeftOut("b/same.jpg", r"the same photo as b/\x1b]0;.jpg"),)
    (root / "a" / "1.jpg").unlink()
    with pytest.raises(PhotosError, match="no photo in this class folder") as error:
        find_photos(root)
    assert str(error.value).isprintable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root enters everything")
def test_folders_that_may_not_be_entered(tmp_path: Path) -> None:
    root = put(many(tmp_path / "photos", count=4), "c/5.jpg")
    put(tmp_path / "closed", "6.jpg")
    (root / "a" / "linked.jpg").symlink_to(tmp_path / "closed" / "6.jpg")
    (root / "a" / "more").symlink_to(tmp_path / "closed" / "inside")
    for path, mode in ((tmp_path / "closed", 0o000), (root / "c", 0o444)):
        path.chmod(mode)
    try:
        with pytest.raises(PhotosError, match="class c has no readable photo"):
            find_photos(root)
        with pytest.raises(PhotosError, match="closed: Permission denied; make the folder readable"):
            find_photos(tmp_path / "closed")
        with pytest.raises(PhotosError, match="inside: Permission denied; give a folder that holds"):
            find_photos(tmp_path / "closed" / "inside")
        (root / "c").chmod(0o755)
        assert find_photos(root).left_out == (
            LeftOut("a/linked.jpg", "Permission denied"),
            LeftOut("a/more", "Permission denied"),
        )
    finally:
        for path in (tmp_path / "closed", root / "c"):
            path.chmod(0o755)


def test_leaving_out_the_last_photo_of_a_class_is_an_error(tmp_path: Path) -> None:
    dataset = find_photos(put(tmp_path, "a/1.jpg", "b/2.jpg", "b/3.jpg"))
    with pytest.raises(PhotosError, match="class a has no readable photo"):
        dataset.without([LeftOut("a/1.jpg", "is damaged")])


def test_the_manifest_reads_back(tmp_path: Path) -> None:
    root = put(many(tmp_path / "photos", count=5), "a/film.mov", '薔薇, "red"/x.jpg')
    dataset = find_photos(root)
    write_manifest(dataset, tmp_path)
    assert read_manifest(tmp_path, dataset.root, dataset.classes) == dataset


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_file_name_that_is_no_utf8(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", "a/1.jpg", "a/3.jpg", "b/2.jpg")
    (root / "a" / "3.jpg").rename(root / os.fsdecode(b"a/caf\xe9.jpg"))
    dataset = find_photos(root)
    assert len(dataset.photos) == 3
    write_manifest(dataset, tmp_path)
    assert read_manifest(tmp_path, dataset.root, dataset.classes) == dataset


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_file_name_with_the_end_of_a_line(tmp_path: Path) -> None:
    root = put(tmp_path / "photos", "a/1.jpg", "a/two\rlines.jpg", "a/\r\n\n\r.jpg", "b/2.jpg", "b/\r.mov")
    dataset = find_photos(root)
    write_manifest(dataset, tmp_path)
    assert read_manifest(tmp_path, dataset.root, dataset.classes) == dataset
    ordinary = [photo for photo in dataset.photos if photo.path == "a/1.jpg"]
    assert f"\na/1.jpg,a,{ordinary[0].split},{ordinary[0].sha256}\n" in (
        (tmp_path / "photos.csv").read_bytes().decode()
    )


def test_the_digest_is_of_content(tmp_path: Path) -> None:
    dataset = find_photos(many(tmp_path / "one", count=9))
    (tmp_path / "one" / "a" / "1.jpg").rename(tmp_path / "one" / "a" / "x.jpg")
    moved = find_photos((tmp_path / "one").rename(tmp_path / "two"))
    assert moved.sha256 == dataset.sha256
    put(tmp_path, "two/a/1.jpg", content="another")
    assert find_photos(tmp_path / "two").sha256 != dataset.sha256
