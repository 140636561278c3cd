"""The files of a model folder: their names, their size limits, and how they are read."""

import os
from pathlib import Path
from stat import S_ISREG

from runtime.common.errors import ModelError
from runtime.common.regular_file import open_regular

INDEX_NAME = "model.json"
CONTRACT_NAME = "contract.json"  # the zip entry in a .tflite, the metadata key in an .onnx
SIGNATURE_NAME = "model.sig"
STATISTICS_NAME = "statistics.safetensors"  # the zip entry in a .tflite

MAX_MODEL_BYTES = 2**30
MAX_JSON_BYTES = 2**20
MAX_OUTPUT_VALUES = 2**20  # of one output of a model
MAX_TENSOR_VALUES = 2**28  # of any tensor; the largest of a VGG16 has 3.2 million for a picture of 224 x 224
MAX_STATISTICS_BYTES = 2**24


def read_bytes(path: Path, limit: int) -> bytes:
    """Returns a file's bytes. Raises ModelError when it has more than `limit` or cannot be read."""
    try:
        mode = file_mode(path)
        if mode and not S_ISREG(mode):
            raise ModelError(f"{path}: is not a file")
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > limit:
                raise ModelError(f"{path}: is over {limit:,} bytes, more than such a file can be")
            return file.read(size)
    except OSError as error:
        raise unreadable(path, error) from None
    except MemoryError:
        raise ModelError(f"{path}: is larger than the memory that is free: move it elsewhere") from None


def is_file(path: Path) -> bool:
    """Whether the path is a regular file. Raises ModelError where this user may not look."""
    return S_ISREG(file_mode(path))


def file_mode(path: Path) -> int:
    """Returns the path's st_mode, or 0 where nothing exists. Raises ModelError without permission."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: the name holds a null byte
        return 0
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> ModelError:
    """Returns the ModelError for a path that is gone, or that this user may not look at."""
    reason = str(error.strerror or error).lower()
    missing = isinstance(error, FileNotFoundError)
    step = "check the path" if missing else "choose a path that this user may read"
    return ModelError(f"{path}: {reason}: {step}")
