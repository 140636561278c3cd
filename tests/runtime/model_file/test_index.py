"""model.json: wrong entries are rejected with their reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.common.errors import ModelError
from runtime.model_file.loader import open_model
from tests.runtime.conftest import MakeFolder, rewrite_index


@pytest.mark.parametrize("file", ["../outside.tflite", "/etc/passwd", "a\\b.tflite", "c:x.tflite", "..", ""])
def test_an_index_cannot_name_files_outside_its_folder(
    tmp_path: Path, make_folder: MakeFolder, file: str
) -> None:
    folder = make_folder(tmp_path / "m")
    rewrite_index(folder, lambda index: index["files"][0].update(file=file))
    with pytest.raises(ModelError, match="not a bare file name"):
        open_model(folder)


def test_a_folder_without_an_index_names_its_model_file(tmp_path: Path, make_folder: MakeFolder) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "model.json").unlink()
    first, *others = sorted(path for path in folder.glob("*.*") if path.suffix in (".tflite", ".onnx"))
    with pytest.raises(ModelError, match=rf"has no model\.json: .*, or one file, such as {first}$"):
        open_model(folder)
    for file in (first, *others):
        file.unlink()
    with pytest.raises(ModelError, match=r"has no model\.json: [^,]*$"):
        open_model(folder)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"file": "a\u2028b"}, r"'a\\u2028b' is not a bare file name"),
        ({"file": "☃" * 150}, "not a bare file name"),  # 450 bytes, too long for a file system
        ({"file": "x" * 5000}, "'x{40}' is not a bare file name"),
        ({"file": "\ud800"}, "not a bare file name"),
        ({"format": "\u2028"}, r"'\\u2028' with precision 'float32'"),
        ({"precision": "x" * 5000}, "format 'tflite' with precision 'x{40}'"),
        ({"sha256": "\ud800"}, "64 hexadecimal digits"),  # a name in the cache is computed from it
        ({"bytes": 10**4000}, "number of bytes must be 0 to 1,073,741,824$"),
    ],
)
def test_long_or_unprintable_names_in_an_index_give_one_short_line(
    tmp_path: Path, make_folder: MakeFolder, fields: dict[str, object], reason: str
) -> None:
    """Found by tests/fuzz."""
    folder = make_folder(tmp_path / "m")
    rewrite_index(folder, lambda index: index["files"][0].update(fields))
    with pytest.raises(ModelError, match=reason):
        open_model(folder)
