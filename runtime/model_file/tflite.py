"""The contract's text and the statistics inside a .tflite file."""

import io
import struct

from runtime.common.errors import ModelError
from runtime.model_file.files import CONTRACT_NAME, MAX_JSON_BYTES, MAX_STATISTICS_BYTES, STATISTICS_NAME

FILE_IDENTIFIER = b"TFL3"  # bytes 4 to 8 of the FlatBuffer
# At the end of a file: they hold the zip's directory and the contract, which is its last entry.
_TAIL_BYTES = 2 * MAX_JSON_BYTES


def read_contract_text(data: bytes) -> bytes:
    """Returns contract.json from the zip archive that TFLite Metadata appends to the FlatBuffer.

    Raises ModelError.
    """
    return _read_entry(data[-_TAIL_BYTES:], CONTRACT_NAME, MAX_JSON_BYTES)


def read_statistics_bytes(data: bytes) -> bytes:
    """Returns the bytes of the ModelStatistics from the same archive. Raises ModelError."""
    return _read_entry(data[-_TAIL_BYTES - MAX_STATISTICS_BYTES :], STATISTICS_NAME, MAX_STATISTICS_BYTES)


def _read_entry(tail: bytes, name: str, limit: int) -> bytes:
    """Returns an entry of the zip archive at the end of a file, of which `tail` are the last bytes.

    The tail is short, so that a forged directory cannot make zipfile build millions of entries.
    """
    import zipfile  # late: an ONNX file does not need it

    try:
        with zipfile.ZipFile(io.BytesIO(tail)) as archive:
            entry = archive.getinfo(name)
            if entry.file_size > limit:
                raise ModelError(f"its {name} is over {limit:,} bytes")
            # An export stores the entry, so that no decompressor has to be trusted.
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ModelError(f"its {name} is compressed, which no export does: export it again")
            with archive.open(entry) as file:
                return file.read(limit)
    except KeyError:
        raise ModelError(f"holds no {name}: it was not made by `python -m export`") from None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, OverflowError, struct.error, RuntimeError):
        raise ModelError(f"is truncated, or holds no {name}: copy it again, or export it") from None
