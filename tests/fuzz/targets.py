"""The fuzz targets: one function for each parser of untrusted input, with small real files as seeds.

A target may raise the user error that its command prints, and no other exception.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import patch

import numpy as np
from PIL import Image

from runtime.common.errors import ModelError, PictureError, UserError
from runtime.inference.correction import Correction, parse_correction
from runtime.model_file.contract import Contract, GoldenAnswer
from runtime.model_file.files import CONTRACT_NAME, INDEX_NAME
from runtime.model_file.formats import check_content, read_contract
from runtime.model_file.index import read_index
from runtime.model_file.selection import choose_model
from runtime.model_file.signature import PublicKey, signed_files
from runtime.model_file.statistics import ModelStatistics, fit_statistics
from runtime.preprocess import decode_protocol as protocol
from runtime.preprocess.decode_pool import Worker, WorkerEnded
from runtime.preprocess.picture import read_picture
from runtime.server import connection_limits
from runtime.server.auth import make_access_policy
from runtime.server.connection_limits import MAX_PIPELINED
from runtime.server.crop_setting import parse_crop_json
from runtime.server.errors import RequestRejected
from runtime.server.multipart import read_upload
from runtime.watch.sinks import COLUMNS, open_sink
from tests.connection import connect, let_app_run
from tests.helpers import RELEASED

MAX_MESSAGE = 1000  # characters
MAX_HEAD = 512  # bytes of the heads of a connection


@dataclass(frozen=True)
class Target:
    parse: Callable[[bytes], object]  # takes one input
    seeds: Callable[[], list[bytes]]
    max_mb: int = 256  # of the whole process, with Python and the fuzzer
    max_bytes: int = 16_384  # of one input
    is_json: bool = False  # the fuzzer also replaces JSON values


def allow_error(error: type[UserError | ValueError], parse: Callable[[], object]) -> None:
    """Allow this error, with a message of one line that fits on a screen."""
    try:
        parse()
    except error as raised:
        check_message(str(raised))


def allow_rejection(parse: Callable[[], object]) -> None:
    """Allow an HTTP error of the client, with a reason of one line."""
    try:
        parse()
    except RequestRejected as rejected:
        assert 400 <= rejected.status < 500
        check_message(rejected.reason)


def check_message(line: str) -> None:
    assert line and len(line) <= MAX_MESSAGE and len(line.splitlines()) == 1, repr(line[:2000])


def tflite(data: bytes) -> None:
    allow_error(ModelError, lambda: read_contract(data, "tflite"))


def tflite_seeds() -> list[bytes]:
    """The first bytes of a released file and its zip, without the network and the statistics: the fuzzer cuts
    inputs at 16 kB. And a file with a forged zip.
    """
    data = (RELEASED / "flowers_int8.tflite").read_bytes()
    file = io.BytesIO()
    file.write(data[:64])
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "a") as new:
        for name in ("labels.txt", CONTRACT_NAME):
            new.writestr(name, old.read(name))
    return [file.getvalue(), forged_offset()]


def forged_offset() -> bytes:
    """A zip whose contract begins 10 bytes before the archive: zipfile raised OverflowError."""
    file, entry = io.BytesIO(), zipfile.ZipInfo(CONTRACT_NAME)
    entry.extra = struct.pack("<HHQ", 1, 8, 2**64 - 10)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(entry, b"{}")
    data = bytearray(file.getvalue())
    at = data.index(b"PK\1\2") + 42  # the offset in the directory; this one refers to `extra`
    data[at : at + 4] = b"\xff" * 4
    return b"\0\0\0\0TFL3" + data


def onnx(data: bytes) -> None:
    allow_error(ModelError, lambda: read_contract(data, "onnx"))


def onnx_seeds() -> list[bytes]:
    """A released file without its graph and its statistics."""
    import onnx as library

    model = library.load(RELEASED / "flowers_int8.onnx")
    model.graph.Clear()
    properties = {entry.key: entry.value for entry in model.metadata_props}
    library.helper.set_model_props(model, {CONTRACT_NAME: properties[CONTRACT_NAME]})
    return [model.SerializeToString()]


def onnx_graph(data: bytes) -> None:
    allow_error(ModelError, lambda: check_content(data, "onnx"))


def onnx_graph_seeds() -> list[bytes]:
    """A small file with every place of a tensor."""
    import onnx as library
    from onnx import TensorProto, helper

    tensor = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    sparse = library.SparseTensorProto(values=tensor, indices=tensor, dims=[2])
    node = helper.make_node("Constant", [], ["c"], value=tensor, sparse_value=sparse)
    branch = helper.make_graph([node], "branch", [], [], [tensor])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])
    graph = helper.make_graph(
        [helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)], "g", [], [output]
    )
    function = helper.make_function("d", "f", [], ["c"], [node], [])
    return [helper.make_model(graph, functions=[function]).SerializeToString()]


def table(data: bytes) -> None:
    """The CSV file of --watch, opened twice: what the first time leaves is read again."""
    path = _FOLDER / "results.csv"
    path.write_bytes(data)

    def open_twice() -> None:
        found = []
        for _ in range(2):
            with open_sink(path) as sink:
                found.append(set(sink.done))
        assert found[0] == found[1]

    allow_error(UserError, open_twice)


def table_seeds() -> list[bytes]:
    row = "2025-01-31T12:00:00Z,'=a.jpg,1,2,ab,rose,0.9,true,\n"
    text = f"{','.join(COLUMNS)}\n{row}" + row.replace("'=a", '"a, ""b"""')
    return [text.encode(), b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()]


def contract(data: bytes) -> None:
    allow_error(ModelError, lambda: Contract.from_json(data))


def contract_seeds() -> list[bytes]:
    """The released contract, of version 2, and one of version 1."""
    made = read_index(RELEASED).contract
    first = replace(made, version=1, features=None, release=0, golden=None, statistics_sha256="")
    other = replace(first, labels=("grün", "红"), thresholds={}, created="2025-01-31T12:00:00.5+00:00")
    return [made.to_json().encode(), other.to_json().encode()]


def contract_2_seeds() -> list[bytes]:
    """Contracts of version 2, with and without the output `known`."""
    made = read_index(RELEASED).contract
    golden = GoldenAnswer(tuple(1 / len(made.labels) for _ in made.labels), 0.5)
    made = replace(made, version=2, features=8, release=1, golden=golden, statistics_sha256="0a" * 32)
    without = replace(made, thresholds={}, golden=replace(golden, known=None), statistics_sha256="")
    return [made.to_json().encode(), without.to_json().encode()]


def statistics(data: bytes) -> None:
    allow_error(ModelError, lambda: ModelStatistics.from_bytes(data).to_bytes())


def statistics_seeds() -> list[bytes]:
    features, labels = np.random.default_rng(0).random((20, 6)), np.arange(20) % 2
    return [fit_statistics(features, labels, features[:3], labels[:3], np.ones(3)).to_bytes()]


def correction(data: bytes) -> None:
    allow_error(ModelError, lambda: parse_correction(data))


def crop(data: bytes) -> None:
    def parse() -> None:
        if region := parse_crop_json(data):
            assert region.apply(np.zeros((48, 64, 3), np.uint8)).size

    allow_error(ValueError, parse)


def crop_seeds() -> list[bytes]:
    return [b'{"crop": [0.25, 0, 0.5, 1]}', b'{"crop": null}']


def correction_seeds() -> list[bytes]:
    made = Correction("0a" * 32, "2026-11-28T12:00:00Z", 9, 0.5, 0, 0, 0.1, -0.5, np.ones(1, np.float32))
    return [made.to_json().encode()]


_FOLDER = Path(mkdtemp(prefix="vgg-edge-fuzz-"))


def index(data: bytes) -> None:
    """Reads a folder on disk, so that the listed file names are resolved too."""
    (_FOLDER / INDEX_NAME).write_bytes(data)
    allow_error(ModelError, lambda: choose_model(_FOLDER))


def index_seeds() -> list[bytes]:
    return [(RELEASED / INDEX_NAME).read_bytes()]


def bundle(data: bytes) -> None:
    allow_error(ModelError, lambda: signed_files(data, _signer()[1]))


def bundle_seeds() -> list[bytes]:
    return [_bundle(seed) for seed in statement_seeds()]


def statement(data: bytes) -> None:
    """The content of a valid signature: its key is trusted, but may also sign other statements."""
    allow_error(ModelError, lambda: signed_files(_bundle(data), _signer()[1]))


def statement_seeds() -> list[bytes]:
    resources = [{"name": name, "digest": "0a" * 32, "algorithm": "sha256"} for name in ("a", INDEX_NAME)]
    return [
        json.dumps(
            {
                "_type": "https://in-toto.io/Statement/v1",
                "subject": [{"name": "flowers", "digest": {"sha256": "0b" * 32}}],
                "predicateType": "https://model_signing/signature/v1.0",
                "predicate": {
                    "resources": resources,
                    "serialization": {
                        "method": "files",
                        "hash_type": "sha256",
                        "ignore_paths": ["model.sig"],
                    },
                },
            }
        ).encode()
    ]


@cache
def _signer() -> tuple[object, PublicKey]:
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.derive_private_key(2**128 + 1, ec.SECP256R1())
    return private, PublicKey(Path("fuzz.pub"), private.public_key())


def _bundle(payload: bytes) -> bytes:
    """The bundle that model-signing writes, with any payload."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    private, public = _signer()
    kind = "application/vnd.in-toto+json"
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    signature = private.sign(signed, ECDSA(SHA256()))  # type: ignore[attr-defined]
    return json.dumps(
        {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": public.sha256}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": kind,
                "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
            },
        },
        separators=(",", ":"),  # as model-signing writes it: no other form is accepted
    ).encode()


def picture(data: bytes) -> None:
    def read() -> None:
        pixels = read_picture(data, (32, 32))
        assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8

    allow_error(PictureError, read)


def picture_seeds() -> list[bytes]:
    return list(_pictures())


def tiff_seeds() -> list[bytes]:
    return [seed for seed in picture_seeds() if seed.startswith((b"II", b"MM"))]


def ppm(data: bytes) -> None:
    """The Netpbm formats begin with P. They are refused by name: no decoder may read them."""
    picture(b"P" + data)


def ppm_seeds() -> list[bytes]:
    headers = (b"1 2 1 0 1", b"2 2 1 9 1 2", b"3\n# a comment\n2 1 255\n1 2 3 4 5 6\n", b"4 8 1\n\xaa")
    return [*headers, b"5 1 1 255\n\x80", b"6 1 1 255\nrgb", b"7\nWIDTH 1\nENDHDR\na", b"F 1 1\n-1\n\0\0\0\0"]


def metadata_seeds() -> list[bytes]:
    """Small pictures with EXIF data, a profile, texts and XMP, and a format that is refused."""
    from PIL import ImageCms
    from PIL.PngImagePlugin import PngInfo

    exif, texts = Image.Exif(), PngInfo()
    exif[0x0112], exif[0x010E] = 8, "text"
    exif.get_ifd(0x8769)[0x9003] = "2024:01:01 00:00:00"
    texts.add_text("a", "b" * 50, zip=True)
    texts.add_itxt("c", "d", "en", "e")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options: dict[str, dict[str, object]] = {
        "JPEG": {"exif": exif, "icc_profile": srgb, "comment": b"c", "xmp": b"<x/>"},
        "PNG": {"exif": exif, "icc_profile": srgb, "pnginfo": texts},
        "WEBP": {"exif": exif, "icc_profile": srgb, "xmp": b"<x/>"},
        "TIFF": {"exif": exif, "icc_profile": srgb, "description": "d"},
    }
    seeds = [b"P3\n# a comment\n2 1 255\n1 2 3 4 5 6\n", b"P4\n8 1\n\xaa"]
    for kind, extra in options.items():
        file = io.BytesIO()
        Image.new("RGB", (4, 3), "red").save(file, kind, **extra)
        seeds.append(file.getvalue())
    return seeds


def reply(data: bytes) -> None:
    """What a worker that an exploit took over may send to the process that it decodes for."""
    for fit in (False, True):
        worker = object.__new__(Worker)
        worker.since, worker.is_ready, worker.is_idle = 0.0, True, True
        worker._requests, worker._replies = io.BytesIO(), io.BytesIO(data)
        try:
            pixels = worker.decode(io.BytesIO(b"x"), 1, (2, 3), fit)
        except WorkerEnded:
            continue
        except PictureError as error:
            check_message(str(error))
        else:
            if pixels is not None:
                height, width, _ = pixels.shape
                assert (height, width) == (2, 3) or (fit and height <= 2 and width <= 3)


def reply_seeds() -> list[bytes]:
    reserve = protocol.REPLY.pack(protocol.RESERVE, 8) + (1000).to_bytes(8, "little")
    return [
        reserve + protocol.REPLY.pack(protocol.PIXELS, 22) + protocol.SHAPE.pack(2, 3) + bytes(18),
        protocol.REPLY.pack(protocol.PIXELS, 7) + protocol.SHAPE.pack(1, 1) + bytes(3),
        reserve + protocol.REPLY.pack(protocol.DAMAGED, 10) + b"is damaged",
        protocol.REPLY.pack(protocol.UNSUPPORTED, 6) + b"is PPM",
        protocol.REPLY.pack(protocol.NEEDS_ALL, 0),
    ]


def _pictures() -> Iterator[bytes]:
    """Every supported format, 24 x 20 pixels, in each mode that is decoded differently."""
    from PIL import ImageCms

    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 4), np.uint8)
    rgba = Image.fromarray(noise, "RGBA")
    rgb, grey, palette = rgba.convert("RGB"), rgba.convert("L"), rgba.convert("RGB").quantize(16)
    deep = Image.fromarray(noise.astype(np.uint16)[..., 0] * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    def saved(image: Image.Image, kind: str, **options: object) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    yield saved(rgb, "JPEG", exif=exif, icc_profile=srgb)
    yield saved(rgb, "JPEG", progressive=True)
    yield saved(grey, "JPEG")
    yield saved(rgb.convert("CMYK"), "JPEG")
    yield saved(rgb, "MPO", save_all=True, append_images=[rgb])
    for image in (rgba, rgb, grey, deep, rgba.convert("LA"), rgb.convert("1")):
        yield saved(image, "PNG")
    yield saved(palette, "PNG", transparency=3, icc_profile=srgb)
    yield saved(rgb, "PNG", exif=exif)
    yield saved(palette, "GIF", save_all=True, append_images=[palette.rotate(90)], transparency=3)
    for options in ({"lossless": True}, {"exif": exif}, {"save_all": True, "append_images": [rgb]}):
        yield saved(rgba, "WEBP", **options)
    for compression in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        yield saved(rgb, "TIFF", compression=compression)
    yield saved(deep, "TIFF")
    yield saved(Image.fromarray(noise.astype(np.float32)[..., 0]), "TIFF")
    for image in (rgb, palette, rgba):
        yield saved(image, "BMP")
    yield saved(rgb, "AVIF")
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()
    yield saved(rgb, "HEIF")


def upload(data: bytes) -> None:
    """The first line is the Content-Type, the rest is the body of the request."""
    content_type, _, body = data.partition(b"\n")
    allow_rejection(lambda: read_upload(content_type.decode("latin-1"), body))


def head(data: bytes) -> None:
    """The headers of a request, one per line, to a service with a token."""
    policy = make_access_policy("127.0.0.1", 8080, ["pi.example.org"], "t" * 24)
    fields = [line.partition(b":")[::2] for line in data.split(b"\n")]
    allow_rejection(lambda: policy.check("POST", fields))


def head_seeds() -> list[bytes]:
    bearer = b"authorization:Bearer " + b"t" * 24
    return [
        b"host:127.0.0.1:8080\norigin:http://127.0.0.1:8080\nsec-fetch-site:same-origin\n" + bearer,
        b'host:[::1]:8080\norigin:http://[::1]:8080\ncookie:vgg_edge_8080=0; other="1"',
        b"host:pi.example.org\n" + bearer,
    ]


def upload_seeds() -> list[bytes]:
    photo = picture_seeds()[2]
    head = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'
    field = b'--b\r\nContent-Disposition: form-data; name="note"\r\n\r\nmine\r\n'
    return [
        b"image/jpeg\n" + photo,
        b"multipart/form-data; boundary=b\n" + head + photo + b"\r\n--b--\r\n",
        b'multipart/form-data; boundary="b"\n' + field + head + photo + b"\r\n--b--\r\n",
    ]


def connection(data: bytes) -> None:
    """Everything that one client sends: the first byte is the size of the pieces that arrive.

    The limits are smaller than those of the service, so that short inputs reach them.
    """
    size = data[0] + 1 if data else 1

    async def receive_all() -> None:
        protocol, transport = connect()
        for start in range(1, len(data), size):
            if not transport.is_closing():
                protocol.data_received(data[start : start + size])
            heads = [protocol.headers or [], *(cycle.scope["headers"] for cycle, _ in protocol.pipeline)]
            held = sum(len(name) + len(value) for fields in heads for name, value in fields)
            assert held <= 2 * MAX_HEAD + size and len(protocol.pipeline) <= MAX_PIPELINED + size
            await let_app_run()
        protocol.connection_lost(None)
        await let_app_run()

    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns about each malformed request
    with patch.multiple(connection_limits, MAX_HEAD_BYTES=MAX_HEAD, PARSED_AT_ONCE=64, FIELD_BYTES=8):
        asyncio.run(receive_all())


def connection_seeds() -> list[bytes]:
    get = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    post = b"POST /login HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbody"
    chunked = (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4;a=b\r\nbody\r\n0\r\nX: y\r\nZ: w\r\n\r\n"
    )
    upgrade = b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    h2c = post.replace(b"Expect: 100-continue", b"Connection: Upgrade\r\nUpgrade: h2c")
    return [bytes([99]) + request + get for request in (get * 3, post, chunked, upgrade, h2c)]


def trailer(data: bytes) -> None:
    """The chunks and the trailer of a body. The first byte is the size of the pieces that arrive."""
    connection(data[:1] + b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + data[1:])


def trailer_seeds() -> list[bytes]:
    get = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    fields = b"".join(b"X-%d: y\r\n" % number for number in range(9))
    bodies = (
        b"4;a=b\r\nbody\r\n0\r\nX: y\r\nZ: w\r\n\r\n",
        b"0\r\n" + fields,
        b"00000a\r\n0123456789\r\n0\r\n\r\n",
    )
    return [bytes([size]) + body + get for size, body in zip((99, 7, 0), bodies, strict=True)]


TARGETS = {
    "tflite": Target(tflite, tflite_seeds),
    "onnx": Target(onnx, onnx_seeds),
    "onnx_graph": Target(onnx_graph, onnx_graph_seeds),
    "table": Target(table, table_seeds),
    "contract": Target(contract, contract_seeds, is_json=True),
    "contract_2": Target(contract, contract_2_seeds, is_json=True),
    "correction": Target(correction, correction_seeds, is_json=True),
    "crop": Target(crop, crop_seeds, is_json=True, max_bytes=1000),
    "statistics": Target(statistics, statistics_seeds),
    "index": Target(index, index_seeds, is_json=True),
    "bundle": Target(bundle, bundle_seeds, is_json=True),
    "statement": Target(statement, statement_seeds, is_json=True),
    "upload": Target(upload, upload_seeds),
    "head": Target(head, head_seeds, max_bytes=2048),
    "connection": Target(connection, connection_seeds, max_bytes=2048),
    "trailer": Target(trailer, trailer_seeds, max_bytes=2048),
    "picture": Target(picture, picture_seeds, max_mb=1024),
    "ppm": Target(ppm, ppm_seeds, max_mb=1024),
    "tiff": Target(picture, tiff_seeds, max_mb=1024),
    "metadata": Target(picture, metadata_seeds, max_mb=1024),
    "reply": Target(reply, reply_seeds, max_bytes=256),
}
