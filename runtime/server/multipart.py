"""What a request's body holds: a picture as it is, or one in a form (multipart/form-data, RFC 7578)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.server.auth import RequestRejected

if TYPE_CHECKING:
    from python_multipart.multipart import Field, File

MAX_PARTS = 100  # a form has a handful
MAX_NAME = 255  # characters, as on most file systems


@dataclass(frozen=True)
class Upload:
    name: str  # the file's, without folders; "-" when it has none
    data: bytes  # the encoded picture, not looked into


def read_upload(content_type: str, body: bytes) -> Upload:
    """The one picture in a body. Raises Refused: 400 when it is damaged, 415 when it is of another kind."""
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        if not (boundary := options.get(b"boundary")):
            raise RequestRejected(400, "multipart/form-data without a boundary")
        return _read_form(boundary, body)
    # The last is what `curl --data-binary` and Python's urllib say of bytes when nobody tells them better.
    bare = (b"", b"application/octet-stream", b"application/x-www-form-urlencoded")
    if kind not in bare and not kind.startswith(b"image/"):
        raise RequestRejected(
            415,
            f"Content-Type {kind.decode('latin-1')[:100]!r}: send a picture as image/jpeg, as "
            "application/octet-stream, or as a file in multipart/form-data",
        )
    if not body:
        raise RequestRejected(400, "is empty")
    return Upload("-", body)


def _read_form(boundary: bytes, body: bytes) -> Upload:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import FormParser

    files: list[Upload] = []
    parts, ended = 0, False

    def count(part: "Field | File") -> None:
        nonlocal parts
        parts += 1
        if parts > MAX_PARTS:
            raise RequestRejected(400, f"the form has more than {MAX_PARTS} parts")

    def keep(file: "File") -> None:
        count(file)
        file.file_object.seek(0)
        files.append(Upload(_name(file.file_name or b""), file.file_object.read()))

    def end() -> None:
        nonlocal ended
        ended = True

    # Nothing goes to a disk: the body is in memory already, and bounded.
    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    try:
        parser = FormParser("multipart/form-data", count, keep, end, boundary, config=in_memory)
        parser.write(body)
    except FormParserError as error:
        raise RequestRejected(400, f"is no form: {' '.join(str(error).split())[:200]}") from None
    if not ended:
        raise RequestRejected(400, "the form is cut off: send it again")
    if len(files) != 1:
        raise RequestRejected(400, f"the form holds {len(files)} files: send one picture a request")
    if not files[0].data:
        raise RequestRejected(400, "is empty", source=files[0].name)
    return files[0]


def _name(given: bytes) -> str:
    name = given.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    return name[:MAX_NAME] or "-"
