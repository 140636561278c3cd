"""A model file is read once and checked against its index and contract."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from runtime.common.errors import ModelError
from runtime.model_file.files import read_bytes
from runtime.model_file.index import read_index
from runtime.model_file.loader import open_model
from runtime.model_file.selection import choose_model
from tests.runtime.conftest import CONTRACT, MakeFolder, rewrite_index


def test_every_indexed_file_opens(colours: Path) -> None:
    for file in read_index(colours).files:
        model = open_model(colours / file.file)
        assert model.contract == CONTRACT
        assert (model.format, model.precision, model.sha256) == (file.format, file.precision, file.sha256)
        assert model.data == (colours / file.file).read_bytes()


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_a_file_without_an_index_opens(colours: Path, tmp_path: Path, format: str) -> None:
    path = tmp_path / f"any name.{format}"
    path.write_bytes((colours / f"colours_float32.{format}").read_bytes())
    model = open_model(path)
    assert (model.contract, model.format, model.precision) == (CONTRACT, format, "")


@pytest.mark.parametrize("format", ["tflite", "onnx"])
@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_a_truncated_file_raises_model_error(colours: Path, tmp_path: Path, format: str, keep: float) -> None:
    data = (colours / f"colours_float32.{format}").read_bytes()
    path = tmp_path / f"cut.{format}"
    path.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else int(keep)])
    with pytest.raises(ModelError, match=r"cut\.\w+: (is|holds) "):
        open_model(path)


@pytest.mark.parametrize("by_folder", [True, False])
def test_a_file_that_differs_from_its_index_raises_model_error(
    tmp_path: Path, make_folder: MakeFolder, by_folder: bool
) -> None:
    folder = make_folder(tmp_path / "m", ("tflite", "float32"))
    path = folder / "colours_float32.tflite"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(ModelError, match="bytes, but"):
        open_model(folder if by_folder else path)
    path.write_bytes(good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
    with pytest.raises(ModelError, match=r"sha256 differs from model\.json"):
        open_model(folder if by_folder else path)
    path.write_bytes(good)
    rewrite_index(folder, lambda index: index["contract"].update(name="other"))
    with pytest.raises(ModelError, match="contract inside it differs"):
        open_model(folder if by_folder else path)


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_another_contract_version_is_named_in_the_error(
    tmp_path: Path, make_folder: MakeFolder, format: str
) -> None:
    folder = make_folder(tmp_path / "m", (format, "float32"), version=3)
    with pytest.raises(ModelError, match="contract version 3, this runtime reads versions 1 and 2"):
        open_model(folder)
    with pytest.raises(ModelError, match="contract version 3, this runtime reads versions 1 and 2"):
        open_model((folder / f"colours_float32.{format}").rename(tmp_path / f"lone.{format}"))


def test_a_missing_model_or_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere: no such file or folder"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has no model\.json"):
        open_model(tmp_path)
    (tmp_path / "x.tflite").write_bytes(b"this is no model")
    with pytest.raises(ModelError, match="neither"):
        open_model(tmp_path / "x.tflite")


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that this user may not look into."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield folder
        os.seteuid(0)
    else:
        yield folder
        folder.chmod(0o700)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("read", [open_model, choose_model, read_index, lambda path: read_bytes(path, 9)])
def test_a_path_without_permission_is_named(closed: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(ModelError, match=r"closed/m\S*: permission denied"):
        read(closed / "m")


def test_a_file_that_cannot_be_read_gives_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.tflite"
    with pytest.raises(ModelError, match=r"m\.tflite: no such file or directory: check the path"):
        read_bytes(path, 9)
    path.touch()
    denied = Mock(side_effect=PermissionError(errno.EACCES, "Denied"))  # root may read every file
    monkeypatch.setattr("runtime.model_file.files.open_regular", denied)
    with pytest.raises(ModelError, match=r"m\.tflite: denied: choose a path that this user may read"):
        read_bytes(path, 9)


@pytest.mark.parametrize("read", [open_model, choose_model, read_index, lambda path: read_bytes(path, 9)])
def test_a_name_too_long_for_the_file_system_gives_one_line(read: Callable[[Path], object]) -> None:
    with pytest.raises(ModelError, match=r"^x{300}\S*: file name too long: "):
        read(Path("x" * 300))


def test_a_name_too_long_for_its_signature_gives_one_line(colours: Path, tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    key = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(key)
    path = tmp_path / f"{'x' * 250}.onnx"
    path.write_bytes((colours / "colours_float32.onnx").read_bytes())
    assert open_model(path).contract == CONTRACT
    with pytest.raises(ModelError, match="file name too long: "):
        open_model(path, key=tmp_path / "key.pub")
