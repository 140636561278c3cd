"""Extracts the picture from a request's body: raw bytes, or a file in a form (RFC 7578)."""

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from runtime.server.errors import RequestRejected

if TYPE_CHECKING:
    from python_multipart.multipart import Field, File

MAX_PARTS = 100  # per form
_ONE_FORM = Lock()  # a form takes three times its size while it is parsed
_TOO_MANY_PARTS = f"the form has more than {MAX_PARTS} parts"
MAX_PADDING = 100  # spaces after a delimiter
MAX_NAME_LENGTH = 255  # characters, the limit of most file systems

# curl --data-binary and Python's urllib send x-www-form-urlencoded unless the caller sets a type.
RAW_TYPES = (b"", b"application/octet-stream", b"application/x-www-form-urlencoded")


@dataclass(frozen=True)
class Upload:
    """A picture in a request's body."""

    name: str  # the file's name without folders; "-" if it has none
    data: bytes  # the encoded picture, not validated


def read_upload(content_type: str, body: bytes) -> Upload:
    """The only picture in a body. Raises RequestRejected: 400 if damaged, 415 if its type is unsupported."""
    from python_multipart.multipart import parse_options_header

    media_type, options = parse_options_header(content_type)
    if media_type == b"multipart/form-data":
        if not (boundary := options.get(b"boundary")):
            raise RequestRejected(400, "multipart/form-data without a boundary")
        with _ONE_FORM:
            return _read_form(boundary, body)
    if media_type not in RAW_TYPES and not media_type.startswith(b"image/"):
        raise RequestRejected(
            415,
            f"Content-Type {media_type.decode('latin-1')[:100]!r}: send a picture as image/jpeg, as "
            "application/octet-stream, or as a file in multipart/form-data",
        )
    if not body:
        raise RequestRejected(400, "the body is empty: send a picture")
    return Upload("-", body)


def _read_form(boundary: bytes, body: bytes) -> Upload:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import FormParser

    _check_delimiters(b"\r\n--" + boundary, body)
    files: list[Upload] = []
    part_count, is_complete = 0, False

    def on_part(part: "Field | File") -> None:
        nonlocal part_count
        part_count += 1
        if part_count > MAX_PARTS:
            raise RequestRejected(400, _TOO_MANY_PARTS)

    def on_file(file: "File") -> None:
        on_part(file)
        file.file_object.seek(0)
        files.append(Upload(_base_name(file.file_name or b""), file.file_object.read()))

    def on_end() -> None:
        nonlocal is_complete
        is_complete = True

    # The body is bounded and in memory already, so the parser writes no temporary files.
    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    try:
        parser = FormParser("multipart/form-data", on_part, on_file, on_end, boundary, config=in_memory)
        try:
            parser.write(body)
        finally:
            parser.parser = None  # a reference cycle, which would keep the body until the next collection
    except FormParserError as error:
        raise RequestRejected(400, f"not a valid form: {' '.join(str(error).split())[:200]}") from None
    if not is_complete:
        raise RequestRejected(400, "the form is truncated: send it again")
    if len(files) != 1:
        raise RequestRejected(400, f"the form has {len(files)} files: send one picture per request")
    if not files[0].data:
        raise RequestRejected(400, "the file is empty: send a picture", source=files[0].name)
    return files[0]


def _check_delimiters(delimiter: bytes, body: bytes) -> None:
    """Raises RequestRejected (400) for a form that costs the parser a third of a second per megabyte.

    It is written in Python, and reads delimiters and the spaces after them byte by byte.
    """
    count, start = 0, -2 if body.startswith(delimiter[2:]) else body.find(delimiter)
    while start != -1:
        count, end = count + 1, start + len(delimiter)
        if count > MAX_PARTS + 1:  # the last one ends the form
            raise RequestRejected(400, _TOO_MANY_PARTS)
        padding = body[end : end + MAX_PADDING]
        if len(padding) == MAX_PADDING and not padding.strip(b" \t"):
            raise RequestRejected(400, f"not a valid form: {MAX_PADDING} spaces after a delimiter")
        start = body.find(delimiter, end)


def _base_name(path: bytes) -> str:
    name = path.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    return name[:MAX_NAME_LENGTH] or "-"
