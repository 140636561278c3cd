"""Which model is used without --model, and the reason that is printed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.classify import main
from runtime.common.errors import ModelError
from runtime.model_file import default_model
from runtime.model_file.files import INDEX_NAME, read_bytes
from runtime.model_file.loader import open_model
from runtime.model_file.selection import choose_model
from tests.helpers import PATIENCE, RELEASED, start_python
from tests.runtime.conftest import MakeFolder

ONE_FILE = ("tflite", "float32")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ./models."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def make_file(make_folder: MakeFolder, tmp_path: Path) -> Callable[..., Path]:
    """Writes one model file directly into ./models."""

    def make(name: str, **changes: object) -> Path:
        folder = make_folder(tmp_path / "exported" / name, **changes)
        return Path(shutil.copy(folder / f"colours_float32{Path(name).suffix}", tmp_path / "models" / name))

    return make


def test_the_default_is_the_newest_model_trained_on_photos(models: Path, make_folder: MakeFolder) -> None:
    make_folder(models / "a", ONE_FILE, created="2025-01-01T00:00:00Z")
    make_folder(models / "b", ONE_FILE, created="2025-03-01T00:00:00Z")
    make_folder(models / "c", ONE_FILE, created="2025-02-01T00:00:00+00:00")
    make_folder(models / "drawn", ONE_FILE, created="2025-04-01T00:00:00Z", synthetic=True)
    make_folder(models / "e.rejected", ONE_FILE, created="2025-05-01T00:00:00Z")
    make_folder(models / "b.old", ONE_FILE, created="2025-06-01T00:00:00Z")
    (models / "broken").mkdir()
    (models / "broken" / INDEX_NAME).write_text("{")
    selection = choose_model()
    assert selection.path.parent == Path("models", "b")
    for fact in ("3 models", "--model", "models/broken", "not JSON", "models/drawn", "generated pictures"):
        assert fact in selection.reason
    assert "rejected" not in selection.reason and "b.old" not in selection.reason
    (models / "b").rename(models / ".b.123")  # in the middle of an export's swap
    assert choose_model().path.parent == Path("models", "b.old")


@pytest.mark.parametrize("name", ["mine.tflite", "mine.onnx"])
def test_a_single_file_in_models_is_used(models: Path, make_file: Callable[..., Path], name: str) -> None:
    make_file(name)
    selection = choose_model()
    assert selection.path == Path("models", name) and "only model" in selection.reason
    assert open_model().reason == selection.reason


def test_the_newest_of_files_and_folders_is_used(
    models: Path, make_file: Callable[..., Path], make_folder: MakeFolder
) -> None:
    make_folder(models / "older", created="2025-01-01T00:00:00Z")
    make_file("mine_float32.tflite", created="2025-02-01T00:00:00Z")
    make_file("mine_full_int8.tflite", created="2025-02-01T00:00:00Z")
    make_file("mine_int8.tflite", created="2025-02-01T00:00:00Z")  # of equally new files the best precision
    assert choose_model().path == Path("models", "mine_int8.tflite")
    make_folder(models / "newer", created="2025-03-01T00:00:00Z")
    assert choose_model().path.parent == Path("models", "newer")


def test_the_small_release_is_used_only_where_nothing_else_is(models: Path, make_folder: MakeFolder) -> None:
    make_folder(models / "flowers_small", created="2025-02-01T00:00:00Z")
    selection = choose_model()
    assert selection.path.parent == Path("models", "flowers_small") and "the only model" in selection.reason
    make_folder(models / "flowers", created="2025-01-01T00:00:00Z")
    selection = choose_model()
    assert selection.path.parent == Path("models", "flowers")
    assert selection.reason == "the only model in ./models besides flowers_small"
    make_folder(models / "mine", created="2025-01-02T00:00:00Z")
    selection = choose_model()
    assert selection.path.parent == Path("models", "mine")
    assert "2 models in ./models besides flowers_small" in selection.reason


@pytest.mark.parametrize("formats", [["tflite", "onnx"], ["onnx", "tflite"]])
def test_of_equally_new_files_the_preferred_format_is_used(
    formats: list[str], models: Path, make_file: Callable[..., Path]
) -> None:
    make_file("mine_int8.onnx")
    make_file("mine_float32.tflite")
    make_file("mine_int8.tflite")
    assert choose_model(formats=formats).path == Path("models", f"mine_int8.{formats[0]}")


def test_a_folder_copied_into_models_itself_is_used(models: Path, make_folder: MakeFolder) -> None:
    models.rmdir()
    make_folder(models)
    selection = choose_model()
    assert selection.path == Path("models", "colours_dynamic.tflite") and selection.indexed
    assert "only model" in selection.reason


def test_a_file_that_cannot_be_used_is_named(models: Path, make_file: Callable[..., Path]) -> None:
    (models / "photo.onnx").write_bytes(b"not a model")
    make_file("drawn.tflite", synthetic=True)
    (models / "._mine.tflite").write_bytes(b"of macOS, beside a copied file")
    selection = choose_model()
    assert selection.path.parent == RELEASED
    for fact in ("released model", "models/photo.onnx", "models/drawn.tflite", "generated pictures"):
        assert fact in selection.reason
    assert "._mine" not in selection.reason


CHOOSE_IN_LITTLE_MEMORY = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
from runtime.model_file.selection import choose_model
print(choose_model().reason)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_a_file_larger_than_the_memory_is_named(models: Path) -> None:
    with (models / "large.onnx").open("wb") as file:
        file.truncate(2**30)
    printed, errors = start_python("-c", CHOOSE_IN_LITTLE_MEMORY).communicate(timeout=PATIENCE)
    assert "skipped models/large.onnx: is larger than the memory that is free" in printed, errors


def test_a_path_that_cannot_be_looked_at_is_named(models: Path) -> None:
    (models / "loop.tflite").symlink_to("loop.tflite")
    selection = choose_model()
    assert selection.path.parent == RELEASED and "models/loop.tflite: too many levels" in selection.reason
    (models / "loop.tflite").unlink()
    models.rmdir()
    models.symlink_to("models")
    selection = choose_model()
    assert selection.path.parent == RELEASED and "models: too many levels" in selection.reason


def test_a_folder_without_permission_is_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (models / "mine").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "mine")  # root may open it
    assert "skipped models/mine: permission denied" in choose_model().reason


def test_an_unchanged_file_is_read_once(
    models: Path, make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_file("mine.tflite")
    others = [models / f"photo{at:02}.onnx" for at in range(50)]
    for path in others:
        path.write_bytes(b"not a model, for the count")
    read: list[Path] = []

    def count(path: Path, limit: int) -> bytes:
        read.append(path)
        return read_bytes(path, limit)

    monkeypatch.setattr(default_model, "read_bytes", count)
    reason = choose_model().reason
    assert choose_model().reason == reason
    assert reason.count(".onnx") == 3 and reason.endswith(", 47 more")
    assert read == [Path("models", path.name) for path in (models / "mine.tflite", *others)]


def test_a_file_for_another_engine_is_named(models: Path, make_file: Callable[..., Path]) -> None:
    make_file("mine.onnx")
    assert choose_model(formats=["tflite"]).path.parent == RELEASED
    assert "models/mine.onnx" in choose_model(formats=["tflite"]).reason


def test_an_explicit_model_has_no_reason(colours: Path) -> None:
    assert choose_model(colours).reason == open_model(colours).reason == ""


def test_no_model_at_all_names_the_next_command(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_model, "__file__", str(tmp_path / "a" / "b" / "default_model.py"))
    with pytest.raises(ModelError, match="python -m export"):
        choose_model()


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_the_command_prints_which_model_was_chosen_and_why(
    models: Path,
    make_file: Callable[..., Path],
    photos: Path,
    flags: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_file("mine.tflite")
    assert main([str(photos / "red.jpg"), *flags]) == 0
    out, err = capsys.readouterr()
    header = err if flags else out.splitlines()[0]
    assert str(Path("models", "mine.tflite")) in header and "only model" in header
