"""Which photos files, folders and patterns name, however deep the folders are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.preprocess.photo_files import find_photo_files, walk
from tests.helpers import nested_folders


def test_photos_beside_3000_nested_folders_are_found(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").touch()
    with nested_folders(tmp_path):
        photos, problems = find_photo_files([str(tmp_path)])
        assert find_photo_files([f"{tmp_path}/**/*.jpg"]) == (photos, problems)
    assert photos == [str(tmp_path / "b.jpg")]
    assert list(problems.values()) == ["file name too long"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**/*.jpg", ["a.jpg", "b/c.jpg", "b/d/e.jpg"]),
        ("./**/*.jpg", ["./a.jpg", "./b/c.jpg", "./b/d/e.jpg"]),
        ("**/e.jpg", ["b/d/e.jpg"]),
        ("b/**/*.jpg", ["b/c.jpg", "b/d/e.jpg"]),
        ("*/**/*.jpg", ["b/c.jpg", "b/d/e.jpg"]),
        ("**/d/**/*.jpg", ["b/d/e.jpg"]),
        ("**/**/*.jpg", ["a.jpg", "b/c.jpg", "b/d/e.jpg"]),
        ("b/**", ["b/c.jpg", "b/d/e.jpg"]),
        ("**", ["a.jpg", "b/c.jpg", "b/d/e.jpg"]),
        ("**/*", ["a.jpg", "b/c.jpg", "b/d/e.jpg"]),
        ("b**/*.jpg", ["b/c.jpg"]),
    ],
)
def test_a_pattern_names_each_photo_once_and_follows_no_links_to_folders(
    pattern: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two links to the folder above them gave 2^40 paths."""
    for name in ("b/d/e.jpg", "b/c.jpg", "a.jpg", "b/.hidden/f.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link in ("b/l", "b/d/m"):
        (tmp_path / link).symlink_to(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    assert find_photo_files([pattern]) == (names, {})
    if not pattern.startswith("."):
        absolute = [str(tmp_path / name) for name in names]
        assert find_photo_files([f"{tmp_path}/{pattern}"]) == (absolute, {})


def test_walk_finds_the_visible_pictures_of_each_folder(tmp_path: Path) -> None:
    for name in ("b/c.JPG", "b/d/e.png", "a.jpg", ".hidden.jpg", ".cache/f.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link.jpg").symlink_to("b")
    found = {os.path.relpath(folder, tmp_path): names for folder, names in walk(tmp_path, print)}
    assert found == {".": ["a.jpg"], "b": ["c.JPG"], "b/d": ["e.png"]}


def test_a_folder_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    photos, problems = find_photo_files([str(tmp_path / "none"), str(tmp_path)])
    assert photos == [str(tmp_path / "none")] and problems == {str(tmp_path): "no pictures in this folder"}
    errors: list[OSError] = []
    assert list(walk(tmp_path / "none", errors.append)) == [(str(tmp_path / "none"), [])]
    assert [error.filename for error in errors] == [str(tmp_path / "none")]
