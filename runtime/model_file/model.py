"""A model on disk: the contract inside every file, the index beside them, and which file to open.

Everything read here is hostile until parsed: sizes are bounded before anything is unpacked, a file's bytes
are read once, and the bytes that were checked are the bytes that the engine gets.
"""

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Any

from runtime.common.errors import ModelError

if TYPE_CHECKING:
    from runtime.model_file.signature import Signature

CONTRACT_VERSION = 1
RESIZE = "bilinear-antialias-stretch"  # what runtime/picture.py does
CONTRACT_NAME = "contract.json"  # the zip entry in a .tflite, the metadata key in an .onnx
INDEX_NAME = "model.json"
KEY_VARIABLE = "VGG_EDGE_KEY"  # a public key's file, where no other is given
FORMATS = ("tflite", "onnx")
# Best first: int8 is the smallest and quickest on a CPU; float16 is expanded to float32 when it is loaded.
PRECISIONS = ("int8", "dynamic", "float16", "float32")

MAX_MODEL_BYTES = 2**30
MAX_JSON_BYTES = 2**20
MAX_LABELS = 10_000
JOINERS = dict.fromkeys((0x200C, 0x200D))  # invisible, and part of words in Persian and many Indian scripts
MAX_SIDE = 4096  # pixels
MAX_ONNX_FIELDS = 1000  # of a file's outermost message; an export writes six


@dataclass(frozen=True)
class Contract:
    """What a deployable file promises.

    Input `image`, uint8 [1, H, W, 3], RGB, 0-255. Output `probabilities`, float32 [N, C], in the order of the
    labels. A file may add `known`, float32 [N, 1]: the probability that the picture is of any of the classes.
    """

    version: int
    name: str
    labels: tuple[str, ...]  # C of them
    input_size: tuple[int, int]  # H, W
    resize: str
    thresholds: Mapping[str, float]  # by output: "known", when the file has that output
    base_sha256: str
    data_sha256: str
    versions: Mapping[str, str]
    created: str  # ISO 8601, UTC
    synthetic: bool  # trained on drawn pictures: never chosen unasked

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Contract":
        """Parses and checks every field; keys of later writers are passed over. Raises ModelError."""
        return _contract(parse_json(text))


@dataclass(frozen=True)
class IndexedFile:
    """A file as the index lists it."""

    file: str  # a bare name, in the index's own folder
    format: str  # one of FORMATS
    precision: str  # one of PRECISIONS
    bytes: int
    sha256: str
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Index:
    """What model.json holds: the contract that the folder's files share, and the files."""

    contract: Contract
    files: tuple[IndexedFile, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)


@dataclass(frozen=True)
class ModelFile:
    """A model file that was read once and checked; `data` is what an engine is to be given."""

    path: Path
    format: str
    precision: str  # "" for a lone file, which does not say
    data: bytes
    sha256: str
    contract: Contract
    signature: "Signature | None" = None  # what was asked for by a key, and holds


@dataclass(frozen=True)
class ModelSelection:
    """A file to open and what it must agree with: a model.json beside it that lists it, a signature."""

    path: Path
    contract: Contract | None
    listed: IndexedFile | None
    among: tuple[IndexedFile, ...] = ()  # the listed files that `path` left to choose from
    signature: "Signature | None" = None


def open_model(
    path: str | Path | None = None,
    formats: Sequence[str] = FORMATS,
    *,
    prefer: str = "",
    key: str | Path | None = None,
) -> ModelFile:
    """Chooses as `choose_model` does, then reads the file once and checks it against index and contract.

    With `key`, a public key's PEM file (default: the one that VGG_EDGE_KEY names, if it is set), only a model
    that this key has signed is opened. Raises ModelError when there is no such model, or it is damaged, of
    another contract version, not the file that its index lists, or not so signed.
    """
    key = key or os.environ.get(KEY_VARIABLE) or None
    reason = ""
    while True:
        before = reason
        try:
            return _read_model(choose_model(path, formats, prefer=prefer, key=key))
        except ModelError as error:
            # An export may have swapped the folder between two reads: another look then tells otherwise.
            reason = str(error)
            if reason == before:
                raise


def choose_model(
    path: str | Path | None = None,
    formats: Sequence[str] = FORMATS,
    *,
    prefer: str = "",
    key: str | Path | None = None,
) -> ModelSelection:
    """Which file to open: `path` itself, or the best file that the folder `path` has in one of `formats`.

    The file of sha256 `prefer` is the best where it is among them. `formats` is in the order of preference;
    within one, PRECISIONS is. No path: the newest folder under ./models that is not synthetic, else the
    released model that came with the package. With `key`, the signature must hold and cover the index.
    Raises ModelError.
    """
    path = _default_folder() if path is None else _or_old(Path(path))
    mode = _mode(path)
    if not mode:
        raise ModelError(
            f"{path}: no such file or folder: --model takes a .tflite, an .onnx or a folder with {INDEX_NAME}"
        )
    signature = None
    if key is not None:
        from runtime.model_file.signature import (
            read_signature,  # late: it reads as this module does, and seldom
        )

        try:
            signature = read_signature(path, key)
        except OSError as error:
            raise _untold(path, error) from None
    if S_ISDIR(mode):
        index = read_index(path, signature)
        there = tuple(f for f in index.files if S_ISREG(_mode(path / f.file)))
        listed = [f for f in there if f.format in formats]
        if not listed:
            has = " and ".join(sorted({f.format for f in index.files})) or "no"
            raise ModelError(f"{path}: has {has} files, none for this engine ({', '.join(formats)})")

        def rank(file: IndexedFile) -> tuple[bool, int, int, str]:
            precision = PRECISIONS.index(file.precision)
            return file.sha256 != prefer, formats.index(file.format), precision, file.file

        best = min(listed, key=rank)
        return ModelSelection(path / best.file, index.contract, best, among=there, signature=signature)
    if S_ISREG(_mode(path.parent / INDEX_NAME)):
        # Its own FILE.sig says nothing of the index, which then only has to agree with the file.
        covers = signature and INDEX_NAME in signature.files
        index = read_index(path.parent, signature if covers else None)
        for file in index.files:
            if file.file == path.name:
                return ModelSelection(path, index.contract, file, among=(file,), signature=signature)
    return ModelSelection(path, None, None, signature=signature)


def read_index(folder: Path, signature: "Signature | None" = None) -> Index:
    """Reads and checks `folder`/model.json, against the signature if there is one. Raises ModelError."""
    path = folder / INDEX_NAME
    if not S_ISREG(_mode(path)):
        raise ModelError(f"{folder}: has no {INDEX_NAME}: give a folder that `python -m export` wrote")
    try:
        text = read_bytes(path, MAX_JSON_BYTES)
        if signature:
            signature.check(path, hashlib.sha256(text).hexdigest())
        fields = parse_json(text)
        contract = _contract(_field(fields, "contract", dict))
        return Index(contract, tuple(_indexed_file(entry) for entry in _field(fields, "files", list)))
    except ModelError as error:
        raise ModelError(f"{path}: {_without_path(error, path)}") from None


def read_contract(data: bytes, format: str) -> Contract:
    """The contract inside a model file's bytes, by its format. Raises ModelError."""
    return Contract.from_json(_CONTRACT_TEXT[format](data))


def _read_model(choice: ModelSelection) -> ModelFile:
    path, listed = choice.path, choice.listed
    data = read_bytes(path, MAX_MODEL_BYTES)
    sha256 = hashlib.sha256(data).hexdigest()
    if choice.signature:
        choice.signature.check(path, sha256)
    format = listed.format if listed else _format_of(path, data)
    if listed and len(data) != listed.bytes:
        raise ModelError(
            f"{path}: {len(data):,} bytes, but {INDEX_NAME} lists {listed.bytes:,}: copy it again"
        )
    if listed and sha256 != listed.sha256:
        raise ModelError(
            f"{path}: its sha256 differs from {INDEX_NAME} ({sha256[:12]}… is not {listed.sha256[:12]}…)"
        )
    try:
        contract = read_contract(data, format)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    if choice.contract and contract != choice.contract:
        raise ModelError(f"{path}: the contract inside it differs from the one in {INDEX_NAME}: export again")
    return ModelFile(
        path, format, listed.precision if listed else "", data, sha256, contract, choice.signature
    )


def _default_folder() -> Path:
    """The newest by `created` under ./models; a folder whose index cannot be read is no candidate."""
    newest: tuple[str, Path] | None = None
    for path in sorted(Path("models").glob(f"*/{INDEX_NAME}")):
        folder = path.parent
        hidden = folder.name.startswith(".") or folder.suffix == ".rejected"
        if hidden or (folder.suffix == ".old" and S_ISDIR(_mode(folder.with_suffix("")))):
            continue
        try:
            contract = read_index(folder).contract
        except ModelError:
            continue
        if not contract.synthetic and (newest is None or contract.created[:19] > newest[0]):
            newest = contract.created[:19], folder
    if newest:
        return newest[1]
    here = Path(__file__).parents[1]
    for released in (here / "released", here.parent / "models" / "flowers"):  # in a wheel, in a clone
        if S_ISREG(_mode(released / INDEX_NAME)):
            return released
    raise ModelError(
        "no model under ./models and none in this package: --model FOLDER, or `python -m export` makes one"
    )


def _or_old(path: Path) -> Path:
    """An export renames NAME to NAME.old, then the new folder to NAME: meanwhile NAME.old is the set."""
    old = path.with_name(path.name + ".old") if path.name else path
    return old if not _mode(path) and S_ISREG(_mode(old / INDEX_NAME)) else path


def _mode(path: Path) -> int:
    """What lies there, as stat tells it, or 0 where nothing does. Raises ModelError where it is not told."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a null byte
        return 0
    except OSError as error:
        raise _untold(path, error) from None


def _untold(path: Path, error: OSError) -> ModelError:
    reason = str(error.strerror or error).lower()
    return ModelError(f"{path}: {reason}: name one that this user may read")


def read_bytes(path: Path, limit: int) -> bytes:
    """A file's bytes, if they are not more than `limit`. Raises ModelError."""
    try:
        mode = _mode(path)
        if mode and not S_ISREG(mode):
            raise ModelError(f"{path}: is not a file")
        if path.stat().st_size > limit:
            raise ModelError(f"{path}: is over {limit:,} bytes, more than such a file can be")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from None


def _without_path(error: ModelError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _format_of(path: Path, data: bytes) -> str:
    if data[4:8] == b"TFL3":  # the FlatBuffers file identifier
        return "tflite"
    if path.suffix == ".onnx":  # protobuf has no magic number
        return "onnx"
    if not data:
        raise ModelError(f"{path}: is empty")
    raise ModelError(f"{path}: is neither a TFLite file nor named .onnx")


def _text_in_tflite(data: bytes) -> bytes:
    """contract.json from the zip that TFLite Metadata appends to the FlatBuffer.

    Only the last megabytes are looked at, so that a forged directory cannot have zipfile build millions of
    entries.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data[-2 * MAX_JSON_BYTES :])) as archive:
            entry = archive.getinfo(CONTRACT_NAME)
            if entry.file_size > MAX_JSON_BYTES:
                raise ModelError(f"its {CONTRACT_NAME} is over {MAX_JSON_BYTES:,} bytes")
            if entry.compress_type != zipfile.ZIP_STORED:  # as written: no decompressor has to be trusted
                raise ModelError(f"its {CONTRACT_NAME} is compressed, which no export does: export it again")
            with archive.open(entry) as file:
                return file.read(MAX_JSON_BYTES)
    except KeyError:
        raise ModelError(f"carries no {CONTRACT_NAME}: it was not made by `python -m export`") from None
    except (
        zipfile.BadZipFile,
        EOFError,
        OSError,
        ValueError,
        NotImplementedError,
        RuntimeError,
    ):
        raise ModelError(
            f"is truncated, or carries no {CONTRACT_NAME}: copy it again, or export it"
        ) from None


def _text_in_onnx(data: bytes) -> bytes:
    """The value under contract.json in ModelProto.metadata_props.

    A walk over the top level of the wire format (https://protobuf.dev/programming-guides/encoding/) with
    the field numbers of onnx.proto: metadata_props = 14, and in its entries key = 1, value = 2.
    """
    for number, value in _fields(memoryview(data), MAX_ONNX_FIELDS):
        if number == 14 and isinstance(value, memoryview):
            entry = dict(_fields(value, 2))
            key, text = entry.get(1), entry.get(2)
            if not isinstance(key, memoryview) or not isinstance(text, memoryview):
                continue
            if key == CONTRACT_NAME.encode():
                if len(text) > MAX_JSON_BYTES:
                    raise ModelError(f"its {CONTRACT_NAME} is over {MAX_JSON_BYTES:,} bytes")
                return bytes(text)
    raise ModelError(f"carries no {CONTRACT_NAME}: it was not made by `python -m export`")


_CONTRACT_TEXT: dict[str, Callable[[bytes], bytes]] = {"tflite": _text_in_tflite, "onnx": _text_in_onnx}


def _fields(data: memoryview, most: int) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value of each field of one protobuf message; nested messages are not entered.

    Raises ModelError where it is no such message, or has over `most` fields.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            if at >= len(data):
                break
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ModelError("is truncated, or not an ONNX file: copy it again, or export it")

    while at < len(data):
        if not most:
            raise ModelError("has more fields than an ONNX file of `python -m export`: export it again")
        most -= 1
        tag = varint()
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            yield number, varint()
            continue
        length = {1: 8, 5: 4}.get(wire, -1) if wire != 2 else varint()
        if length < 0 or at + length > len(data):
            raise ModelError("is truncated, or not an ONNX file: copy it again, or export it")
        yield number, data[at : at + length]
        at += length


def parse_json(text: str | bytes) -> dict[str, Any]:
    """A JSON object from text that may be anything. Raises ModelError."""
    if len(text) > MAX_JSON_BYTES:
        raise ModelError(f"is over {MAX_JSON_BYTES:,} bytes, more than it can be")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise ModelError("is not JSON") from None
    if not isinstance(fields, dict):
        raise ModelError("is not a JSON object")
    return fields


def _contract(fields: dict[str, Any]) -> Contract:
    version = _field(fields, "version", int)
    if version != CONTRACT_VERSION:
        newer = "upgrade vgg-edge" if version > CONTRACT_VERSION else "export the model again"
        raise ModelError(
            f"is of contract version {str(version)[:12]}, "
            f"this runtime reads version {CONTRACT_VERSION}: {newer}"
        )
    labels = _field(fields, "labels", list)
    if not 2 <= len(labels) <= MAX_LABELS or len(set(map(str, labels))) != len(labels):
        raise ModelError(f"labels must be 2 to {MAX_LABELS:,} different names")
    # Labels end up on terminals: one that could move the cursor is refused here, once.
    if not all(isinstance(label, str) and is_name(label) for label in labels):
        raise ModelError("a label is not a name of printable characters")
    name = _field(fields, "name", str)
    if not is_name(name):  # it goes where they go, and into the service's answers and tables
        raise ModelError("the name is not one of 1 to 200 printable characters")
    size = _field(fields, "input_size", list)
    if len(size) != 2 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in size):
        raise ModelError(f"input_size must be [height, width], each 1 to {MAX_SIDE}")
    resize = _field(fields, "resize", str)
    if resize != RESIZE:
        raise ModelError(
            f"wants its pictures resized by {resize[:40]!r}, this runtime does {RESIZE!r}: upgrade vgg-edge"
        )
    thresholds = _field(fields, "thresholds", dict)  # of outputs that are float32
    if not all(type(value) in (int, float) and abs(value) < 1e38 for value in thresholds.values()):
        raise ModelError("thresholds must be numbers by the name of an output")
    versions = _field(fields, "versions", dict)
    if not all(isinstance(value, str) for value in versions.values()):
        raise ModelError("versions must be texts by the name of a package")
    created = _field(fields, "created", str)
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", created):
        raise ModelError("created must be a UTC time such as 2025-01-31T12:00:00Z")
    return Contract(
        version=version,
        name=name,
        labels=tuple(labels),
        input_size=(size[0], size[1]),
        resize=resize,
        thresholds=thresholds,
        base_sha256=_field(fields, "base_sha256", str),
        data_sha256=_field(fields, "data_sha256", str),
        versions=versions,
        created=created,
        synthetic=_field(fields, "synthetic", bool),
    )


def _indexed_file(fields: Any) -> IndexedFile:
    if not isinstance(fields, dict):
        raise ModelError("files must be a list of objects")
    file, format, precision = (_field(fields, name, str) for name in ("file", "format", "precision"))
    # A bare name: an index must not lead out of its folder, on any system.
    if not is_name(file) or len(file.encode()) > 255 or re.search(r"[/\\:]", file) or file in (".", ".."):
        raise ModelError(f"{file[:40]!r} is not a bare file name")
    if format not in FORMATS or precision not in PRECISIONS:
        raise ModelError(
            f"{file}: {format[:40]!r}, {precision[:40]!r} is no format and precision that this runtime knows"
        )
    return IndexedFile(
        file=file,
        format=format,
        precision=precision,
        bytes=_field(fields, "bytes", int),
        sha256=_field(fields, "sha256", str),
        metrics=_field(fields, "metrics", dict),
    )


def is_name(text: str) -> bool:
    """Whether it can stand on a line of a terminal, and in a file system."""
    return 0 < len(text) <= 200 and text.translate(JOINERS).isprintable()


def _field(fields: dict[str, Any], name: str, kind: type) -> Any:
    """A field of exactly this type: in Python, True would pass for an int."""
    if name not in fields:
        raise ModelError(f"lacks the field {name!r}")
    if type(fields[name]) is not kind:
        raise ModelError(f"the field {name!r} is not of type {kind.__name__}")
    return fields[name]
