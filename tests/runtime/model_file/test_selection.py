"""Which file of a model folder is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.common.errors import ModelError
from runtime.model_file.loader import open_model
from runtime.model_file.selection import choose_model
from tests.runtime.conftest import MakeFolder, rewrite_index


def test_the_preferred_format_decides_then_the_precision(colours: Path) -> None:
    assert choose_model(colours).path.name == "colours_dynamic.tflite"
    assert choose_model(colours, ["onnx", "tflite"]).path.name == "colours_float32.onnx"


def test_int8_is_the_best_precision(tmp_path: Path, make_folder: MakeFolder) -> None:
    folder = make_folder(tmp_path / "m")
    entry = {"file": "colours_float32.tflite", "precision": "int8"}
    rewrite_index(folder, lambda index: index["files"][0].update(entry))
    assert choose_model(folder).path.name == "colours_float32.tflite"


def test_a_missing_file_is_never_chosen(tmp_path: Path, make_folder: MakeFolder) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "colours_dynamic.tflite").unlink()
    assert choose_model(folder).path.name == "colours_float32.tflite"
    (folder / "colours_float32.tflite").unlink()
    assert choose_model(folder).path.name == "colours_float32.onnx"
    with pytest.raises(ModelError, match="none for this engine"):
        choose_model(folder, ["tflite"])


def test_the_index_itself_is_answered_with_its_folder(colours: Path) -> None:
    with pytest.raises(ModelError, match=rf"--model takes the folder, {colours}$"):
        open_model(colours / "model.json")


def test_the_old_folder_is_read_during_a_swap(tmp_path: Path, make_folder: MakeFolder) -> None:
    folder = make_folder(tmp_path / "m")
    folder.rename(tmp_path / "m.old")
    assert open_model(folder).path.parent == tmp_path / "m.old"
    make_folder(folder)
    assert open_model(folder).path.parent == folder
