"""The formats of model files, and the contract and the statistics inside each."""

from collections.abc import Callable
from pathlib import Path

from runtime.common.errors import ModelError
from runtime.model_file import onnx, tflite
from runtime.model_file.contract import Contract

FORMATS = ("tflite", "onnx")
# Best first: int8 is the smallest and fastest on a CPU; full_int8 can be less exact; float16 is expanded to
# float32 when it is loaded.
PRECISIONS = ("int8", "full_int8", "dynamic", "float16", "float32")

_CONTRACT_TEXT: dict[str, Callable[[bytes], bytes]] = {
    "tflite": tflite.read_contract_text,
    "onnx": onnx.read_contract_text,
}
_STATISTICS_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "tflite": tflite.read_statistics_bytes,
    "onnx": onnx.read_statistics_bytes,
}


def read_contract(data: bytes, format: str) -> Contract:
    """Returns the contract inside a model file's bytes. Raises ModelError."""
    return Contract.from_json(_CONTRACT_TEXT[format](data))


def read_statistics_bytes(data: bytes, format: str) -> bytes:
    """Returns the bytes of the ModelStatistics inside a model file's bytes. Raises ModelError."""
    return _STATISTICS_BYTES[format](data)


def check_content(data: bytes, format: str) -> None:
    """Raises ModelError when a file's bytes are not safe to pass to an engine."""
    if format == "onnx":  # a .tflite is checked by its engine, which reads it before it allocates memory
        onnx.check_graph(data)


def named_precision(stem: str) -> str | None:
    """Returns the precision of a file that an export named NAME_PRECISION; `stem` is without the suffix."""
    found = [name for name in PRECISIONS if stem.endswith(name)]
    return max(found, key=len, default=None)  # not int8 for NAME_full_int8


def detect_format(path: Path, data: bytes) -> str:
    """Returns the format of a file's bytes. Raises ModelError."""
    if data[4:8] == tflite.FILE_IDENTIFIER:
        return "tflite"
    if path.suffix == ".onnx":  # protobuf has no magic number
        return "onnx"
    if not data:
        raise ModelError("is empty")
    raise ModelError("is neither a TFLite file nor named .onnx")
