"""The contract's text inside a .tflite file."""

import io

from runtime.common.errors import ModelError
from runtime.model_file.files import CONTRACT_NAME, MAX_JSON_BYTES

FILE_IDENTIFIER = b"TFL3"  # bytes 4 to 8 of the FlatBuffer


def read_contract_text(data: bytes) -> bytes:
    """Returns contract.json from the zip archive that TFLite Metadata appends to the FlatBuffer.

    Reads the last 2 MB only, so that a forged directory cannot make zipfile build millions of entries.
    Raises ModelError.
    """
    import zipfile  # late: an ONNX file does not need it

    try:
        with zipfile.ZipFile(io.BytesIO(data[-2 * MAX_JSON_BYTES :])) as archive:
            entry = archive.getinfo(CONTRACT_NAME)
            if entry.file_size > MAX_JSON_BYTES:
                raise ModelError(f"its {CONTRACT_NAME} is over {MAX_JSON_BYTES:,} bytes")
            # An export stores the entry, so that no decompressor has to be trusted.
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ModelError(f"its {CONTRACT_NAME} is compressed, which no export does: export it again")
            with archive.open(entry) as file:
                return file.read(MAX_JSON_BYTES)
    except KeyError:
        raise ModelError(f"holds no {CONTRACT_NAME}: it was not made by `python -m export`") from None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError):
        raise ModelError(f"is truncated, or holds no {CONTRACT_NAME}: copy it again, or export it") from None
