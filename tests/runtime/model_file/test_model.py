"""Contract, index and choice of file: what is not right is refused with its reason."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from runtime.common.errors import ModelError
from runtime.model_file.contract import Contract
from runtime.model_file.files import INDEX_NAME, MAX_JSON_BYTES, read_bytes
from runtime.model_file.formats import read_contract
from runtime.model_file.index import read_index
from runtime.model_file.loader import open_model
from runtime.model_file.selection import choose_model
from tests.runtime.conftest import CONTRACT

Make = Callable[..., Path]


def changed(**fields: object) -> str:
    return json.dumps({**json.loads(CONTRACT.to_json()), **fields})


def reindex(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = folder / INDEX_NAME
    fields = json.loads(path.read_text(encoding="utf-8"))
    change(fields)
    path.write_text(json.dumps(fields), encoding="utf-8")


def test_contract_comes_back_as_it_was_written() -> None:
    assert Contract.from_json(CONTRACT.to_json()) == CONTRACT


def test_fields_of_later_writers_are_passed_over() -> None:
    assert Contract.from_json(changed(novelty="mahalanobis")) == CONTRACT


def test_labels_in_scripts_that_join_letters() -> None:
    words = ("\u0646\u0631\u06af\u0633\u200c\u0647\u0627", "\u0d15\u0d4d\u200d\u0d37")
    assert Contract.from_json(changed(labels=words)).labels == words


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ('"' + "x" * MAX_JSON_BYTES + '"', "bytes"),
        (changed(version=2), "contract version 2, this runtime reads version 1: upgrade"),
        (changed(version=0), "export the model again"),
        (changed(version=True), "'version' is not of type int"),
        (changed(name="a\nb"), "the name is not one of"),
        (changed(name="\ud800"), "the name is not one of"),  # no file and no answer could hold it
        (changed(name=""), "the name is not one of"),
        (changed(labels=["one"]), "labels must be 2"),
        (changed(labels=["a", "a"]), "different"),
        (changed(labels=["a", "\x1b[2J"]), "printable"),
        (changed(labels=["a", 3]), "printable"),
        (changed(input_size=[224]), "input_size"),
        (changed(input_size=[224, 10**9]), "input_size"),
        (changed(resize="nearest"), "resized by 'nearest'"),
        (changed(thresholds={"known": "0.5"}), "thresholds"),
        (changed(thresholds={"known": float("nan")}), "thresholds"),
        # Found by tests/fuzz: an integer that no float holds, and messages of many lines or of a page.
        (changed(thresholds={"known": 10**400}), "thresholds"),
        (changed(resize="x" * 5000), "resized by 'x{40}'"),
        (changed(version=10**400), "contract version 100000000000,"),
        (changed(labels=["a", "\u2028"]), "printable"),
        (changed(versions={"keras": 3}), "versions"),
        (changed(created="yesterday"), "UTC"),
        (changed(synthetic=None), "'synthetic' is not of type bool"),
        (json.dumps({"version": 1}), "lacks the field 'labels'"),
    ],
)
def test_a_contract_that_is_not_right_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        Contract.from_json(text)


def test_every_file_of_a_folder_opens(colours: Path) -> None:
    for file in read_index(colours).files:
        model = open_model(colours / file.file)
        assert model.contract == CONTRACT
        assert (model.format, model.precision, model.sha256) == (file.format, file.precision, file.sha256)
        assert model.data == (colours / file.file).read_bytes()


def test_best_precision_of_the_preferred_format(colours: Path) -> None:
    assert choose_model(colours).path.name == "colours_dynamic.tflite"
    assert choose_model(colours, ["onnx", "tflite"]).path.name == "colours_float32.onnx"


def test_int8_comes_first(tmp_path: Path, make_folder: Make) -> None:
    folder = make_folder(tmp_path / "m")
    entry = {"file": "colours_float32.tflite", "precision": "int8"}
    reindex(folder, lambda index: index["files"][0].update(entry))  # type: ignore[index]
    assert choose_model(folder).path.name == "colours_float32.tflite"


def test_only_files_that_are_there_are_chosen(tmp_path: Path, make_folder: Make) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "colours_dynamic.tflite").unlink()
    assert choose_model(folder).path.name == "colours_float32.tflite"
    (folder / "colours_float32.tflite").unlink()
    assert choose_model(folder).path.name == "colours_float32.onnx"
    with pytest.raises(ModelError, match="none for this engine"):
        choose_model(folder, ["tflite"])


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_a_lone_file_explains_itself(colours: Path, tmp_path: Path, format: str) -> None:
    path = tmp_path / f"any name.{format}"
    path.write_bytes((colours / f"colours_float32.{format}").read_bytes())
    model = open_model(path)
    assert (model.contract, model.format, model.precision) == (CONTRACT, format, "")


@pytest.mark.parametrize("format", ["tflite", "onnx"])
@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_a_truncated_lone_file_is_refused(colours: Path, tmp_path: Path, format: str, keep: float) -> None:
    data = (colours / f"colours_float32.{format}").read_bytes()
    path = tmp_path / f"cut.{format}"
    path.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else int(keep)])
    with pytest.raises(ModelError, match=r"cut\.\w+: (is|holds) "):
        open_model(path)


@pytest.mark.parametrize("by_folder", [True, False])
def test_a_file_that_its_index_does_not_list_so_is_refused(
    tmp_path: Path, make_folder: Make, by_folder: bool
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
    reindex(folder, lambda index: index["contract"].update(name="other"))  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="contract inside it differs"):
        open_model(folder if by_folder else path)


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_another_contract_version_is_refused_with_that_reason(
    tmp_path: Path, make_folder: Make, format: str
) -> None:
    folder = make_folder(tmp_path / "m", (format, "float32"), version=2)
    with pytest.raises(ModelError, match="contract version 2, this runtime reads version 1"):
        open_model(folder)
    with pytest.raises(ModelError, match="contract version 2, this runtime reads version 1"):
        open_model((folder / f"colours_float32.{format}").rename(tmp_path / f"lone.{format}"))


@pytest.mark.parametrize("file", ["../outside.tflite", "/etc/passwd", "a\\b.tflite", "c:x.tflite", "..", ""])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, make_folder: Make, file: str) -> None:
    folder = make_folder(tmp_path / "m")
    reindex(folder, lambda index: index["files"][0].update(file=file))  # type: ignore[index]
    with pytest.raises(ModelError, match="not a bare file name"):
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
    ],
)
def test_names_in_an_index_fit_on_a_line(
    tmp_path: Path, make_folder: Make, fields: dict[str, str], reason: str
) -> None:
    """Found by tests/fuzz."""
    folder = make_folder(tmp_path / "m")
    reindex(folder, lambda index: index["files"][0].update(fields))  # type: ignore[index]
    with pytest.raises(ModelError, match=reason):
        open_model(folder)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_contract_is_refused(method: int) -> None:
    """Found by tests/fuzz: LZMA's own errors came through, and its file may ask for gigabytes."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", method) as archive:
        archive.writestr("contract.json", CONTRACT.to_json())
    with pytest.raises(ModelError, match="is compressed"):
        read_contract(b"\0\0\0\0TFL3" + zipped.getvalue(), "tflite")


def test_a_large_or_forged_zip_is_refused() -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("contract.json", b" " * 200_000_000)  # 200 kB here
    with pytest.raises(ModelError, match="over"):
        read_contract(b"\0\0\0\0TFL3" + zipped.getvalue(), "tflite")
    forged = zipped.getvalue().replace((200_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    with pytest.raises(ModelError):
        read_contract(b"\0\0\0\0TFL3" + forged, "tflite")


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\x72\xff\xff\xff\xff\x0f", b"\x08\x07", b"\x0b\x0c"])
def test_bytes_that_are_no_onnx_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"truncated|holds no"):
        read_contract(data, "onnx")


@pytest.mark.parametrize(
    "data",
    [
        b"\x72\x80\x89\x7a" + 1_000_000 * b"\x1a\0",  # an entry of metadata_props, and what is in it
        1_000_000 * b"\x08\0",
        1_000_000 * b"\x72\0",
    ],
)
def test_an_onnx_file_of_many_fields_is_refused_at_once(data: bytes) -> None:
    """1.2 MB of them took 46 MB and 0.75 s, and a file may have a gigabyte."""
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="has more fields than"):
            read_contract(data, "onnx")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_old_is_read_while_a_folder_is_being_swapped(tmp_path: Path, make_folder: Make) -> None:
    folder = make_folder(tmp_path / "m")
    folder.rename(tmp_path / "m.old")
    assert open_model(folder).path.parent == tmp_path / "m.old"
    make_folder(folder)
    assert open_model(folder).path.parent == folder


def test_default_is_the_newest_that_is_not_synthetic(
    tmp_path: Path, make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    only = ("tflite", "float32")
    make_folder(tmp_path / "models" / "a", only, created="2025-01-01T00:00:00Z")
    make_folder(tmp_path / "models" / "b", only, created="2025-03-01T00:00:00Z")
    make_folder(tmp_path / "models" / "c", only, created="2025-02-01T00:00:00+00:00")
    make_folder(tmp_path / "models" / "drawn", only, created="2025-04-01T00:00:00Z", synthetic=True)
    make_folder(tmp_path / "models" / "e.rejected", only, created="2025-05-01T00:00:00Z")
    make_folder(tmp_path / "models" / "b.old", only, created="2025-06-01T00:00:00Z")
    (tmp_path / "models" / "broken").mkdir()
    (tmp_path / "models" / "broken" / INDEX_NAME).write_text("{")
    assert choose_model().path.parent == Path("models", "b")
    (tmp_path / "models" / "b").rename(tmp_path / "models" / ".b.123")  # in the midst of a swap
    assert choose_model().path.parent == Path("models", "b.old")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
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
def test_what_this_user_may_not_look_at_is_named(closed: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(ModelError, match=r"closed/m\S*: permission denied: name one that this user may read"):
        read(closed / "m")


@pytest.mark.parametrize("read", [open_model, choose_model, read_index, lambda path: read_bytes(path, 9)])
def test_a_name_too_long_for_a_file_is_told_in_one_line(read: Callable[[Path], object]) -> None:
    with pytest.raises(ModelError, match=r"^x{300}\S*: file name too long: "):
        read(Path("x" * 300))


def test_a_name_too_long_for_its_signatures_is_told_in_one_line(colours: Path, tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    key = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(key)
    path = tmp_path / f"{'x' * 250}.onnx"
    path.write_bytes((colours / "colours_float32.onnx").read_bytes())
    assert open_model(path).contract == CONTRACT
    with pytest.raises(ModelError, match="file name too long: "):
        open_model(path, key=tmp_path / "key.pub")
