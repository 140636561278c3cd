"""A model that is not signed by the given key is rejected before an engine gets its bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from export.output_dir import replace_dir
from export.sign import open_key
from runtime import Classifier
from runtime.classify import main
from runtime.common.errors import ModelError
from runtime.inference import model_reloader
from runtime.inference.engines import ENGINES
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.model_file.files import INDEX_NAME, SIGNATURE_NAME
from runtime.model_file.loader import KEY_VARIABLE, open_model
from runtime.model_file.signature import MISSING, NOT_SIGNED, VALID, read_key, signed_files
from tests.helpers import PATIENCE, ROOT
from tests.runtime.conftest import EACH_ENGINE

TFLITE, ONNX = "colours_float32.tflite", "colours_float32.onnx"


def new_key(folder: Path) -> Path:
    """A public key's file; the private one lies beside it as .key."""
    private = ec.generate_private_key(ec.SECP256R1())
    text = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "maker.key").write_bytes(text)
    public = folder / "maker.pub"
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_key(tmp_path_factory.mktemp("key"))


@pytest.fixture(scope="module")
def signed(colours: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour model, signed; not to be changed."""
    folder = Path(shutil.copytree(colours, tmp_path_factory.mktemp("signed") / "colours"))
    bundle = open_key(key.with_suffix(".key"))(folder.name, held(folder))
    (folder / SIGNATURE_NAME).write_bytes(bundle)
    return folder


@pytest.fixture
def folder(signed: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(signed, tmp_path / "colours"))


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_a_signed_model_opens(signed: Path, key: Path, colours: Path) -> None:
    model = open_model(signed, key=key)
    assert model.signature and model.signature.key == read_key(key).sha256
    assert set(model.signature.files) == {path.name for path in colours.iterdir()}
    assert open_model(signed / ONNX, key=key).signature == model.signature
    assert open_model(signed).signature is None, "without a key a signature is not looked at"


def test_no_bit_of_a_signature_can_change(signed: Path, key: Path) -> None:
    public, bundle = read_key(key), (signed / SIGNATURE_NAME).read_bytes()
    files = signed_files(bundle, public)
    for at in range(len(bundle)):
        for bit in range(8):
            flipped = bundle[:at] + bytes([bundle[at] ^ 1 << bit]) + bundle[at + 1 :]
            with pytest.raises(ModelError):
                signed_files(flipped, public)
    assert files


@pytest.mark.parametrize("name", [INDEX_NAME, TFLITE])
def test_no_byte_of_a_file_can_change(folder: Path, key: Path, name: str) -> None:
    path = folder / name
    good = path.read_bytes()
    for at in range(0, len(good), max(1, len(good) // 200)):
        flip(path, at, at % 8)
        with pytest.raises(ModelError):
            open_model(folder / TFLITE, key=key)
        path.write_bytes(good)
    assert open_model(folder / TFLITE, key=key)


def test_a_changed_file_with_a_matching_index_is_rejected(folder: Path, key: Path) -> None:
    """Who can change a file can change what model.json says of it."""
    path = folder / TFLITE
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    flip(path, 2000)
    index = (folder / INDEX_NAME).read_text("utf-8")
    index = index.replace(old, hashlib.sha256(path.read_bytes()).hexdigest())
    (folder / INDEX_NAME).write_text(index, "utf-8")
    assert open_model(path), "the index agrees"
    with pytest.raises(ModelError, match=r"model\.json: its sha256 .* is not signed in .*model\.sig"):
        open_model(path, key=key)


def test_two_signed_files_cannot_trade_names(folder: Path, key: Path) -> None:
    one, other = folder / TFLITE, folder / "colours_dynamic.tflite"
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    (folder / INDEX_NAME).unlink()
    with pytest.raises(ModelError, match="is not signed in"):
        open_model(one, key=key)


def test_no_signature_and_another_key_are_different_errors(
    folder: Path, key: Path, tmp_path: Path, colours: Path
) -> None:
    other = new_key(tmp_path)
    mine, theirs = read_key(key).sha256[:12], read_key(other).sha256[:12]
    with pytest.raises(ModelError, match=rf"maker\.pub \({theirs}…\) but by .*{mine}…"):
        open_model(folder, key=other)
    with pytest.raises(ModelError, match=r"is not signed .*maker\.pub .*python -m export\.sign"):
        open_model(colours, key=key)
    # The right name of a key under a signature by another.
    bundle = json.loads((folder / SIGNATURE_NAME).read_bytes())
    bundle["verificationMaterial"]["publicKey"]["hint"] = read_key(other).sha256
    with pytest.raises(ModelError, match="signature is not valid"):
        signed_files(json.dumps(bundle, separators=(",", ":")).encode(), read_key(other))


def test_the_environment_variable_sets_the_key(
    signed: Path, colours: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, str(key))
    assert Classifier(signed).model.signature
    with pytest.raises(ModelError, match="is not signed"):
        Classifier(colours)
    monkeypatch.setenv(KEY_VARIABLE, str(key.with_name("gone.pub")))
    with pytest.raises(ModelError, match="no such file or directory: check the path"):
        Classifier(signed)
    monkeypatch.delenv(KEY_VARIABLE)
    assert Classifier(colours).model.signature is None


@pytest.mark.parametrize("command", ["classify", "serve", "bench"])
def test_an_empty_key_is_an_error(
    command: str, colours: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As from a script's variable that is not set: it must not mean that nothing is checked."""
    monkeypatch.setenv(KEY_VARIABLE, "set")  # restored after the test
    monkeypatch.delenv(KEY_VARIABLE)
    main = import_module(f"runtime.{command}").main
    arguments = ["--model", str(colours), *["photo.jpg"] * (command == "classify")]
    assert main([*arguments, "--key", ""]) == 2
    monkeypatch.setenv(KEY_VARIABLE, "")
    assert main(arguments) == 2
    with pytest.raises(ModelError, match="is empty"):
        Classifier(colours)
    first, second = capsys.readouterr().err.splitlines()
    assert "is empty" in first and f"{KEY_VARIABLE} is empty" in second


def json_variants(bundle: bytes) -> list[bytes]:
    """The same content, written in other ways."""
    fields = json.loads(bundle)
    escaped = bundle.replace(b"dsseEnvelope", b"dsse\\u0045nvelope")
    hint = fields["verificationMaterial"]["publicKey"]["hint"].encode()
    return [
        bundle + b"\n",
        b" " + bundle,
        b"\xef\xbb\xbf" + bundle,
        bundle.decode().encode("utf-16"),
        json.dumps(fields).encode(),
        json.dumps(fields, sort_keys=True, separators=(",", ":")).encode(),
        escaped,
        bundle.replace(b'{"hint":', b'{"hint":"other","hint":'),
        bundle.replace(b'"keyid":""', b'"keyid":"x","keyid":""'),
        bundle.replace(hint, b"\\u%04x" % hint[0] + hint[1:]),
    ]


def test_a_bundle_has_one_form(signed: Path, key: Path) -> None:
    public, bundle = read_key(key), (signed / SIGNATURE_NAME).read_bytes()
    assert signed_files(bundle, public)
    for variant in json_variants(bundle):
        assert variant != bundle
        with pytest.raises(ModelError, match=r"is damaged|is not JSON"):
            signed_files(variant, public)


def test_a_signature_covers_a_folder_with_missing_files(folder: Path, key: Path) -> None:
    for path in folder.iterdir():
        if path.name not in (INDEX_NAME, SIGNATURE_NAME, ONNX):
            path.unlink()
    assert open_model(folder, key=key).path.name == ONNX
    flip(folder / INDEX_NAME, 10)
    with pytest.raises(ModelError):
        open_model(folder, key=key)


def test_a_single_file_is_verified_by_the_signature_beside_it(
    signed: Path, key: Path, tmp_path: Path
) -> None:
    lone = Path(shutil.copy(signed / TFLITE, tmp_path / "mine.tflite"))
    with pytest.raises(ModelError, match="is not signed"):
        open_model(lone, key=key)
    for name in (SIGNATURE_NAME, "mine.tflite.sig"):
        shutil.copy(signed / SIGNATURE_NAME, tmp_path / name)
        assert open_model(lone, key=key).signature
        flip(lone, 2000)
        with pytest.raises(ModelError, match="is not signed in"):
            open_model(lone, key=key)
        flip(lone, 2000)
        (tmp_path / name).unlink()


def test_the_old_folder_has_its_own_signature(folder: Path, key: Path) -> None:
    folder.rename(folder.with_name("colours.old"))
    assert open_model(folder, key=key).path.parent.name == "colours.old"
    flip(folder.with_name("colours.old") / INDEX_NAME, 10)
    with pytest.raises(ModelError):
        open_model(folder, key=key)


def test_a_swap_between_two_reads_is_not_reported_as_forgery(
    folder: Path, key: Path, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """A reader whose signature is of the old set and whose index is of the new one looks again.

    As between exports, which take minutes, at most one swap comes while the model is opened.
    """
    other = make_folder(tmp_path / "new", created="2026-01-31T12:00:00Z")
    sign = open_key(key.with_suffix(".key"))
    sets = [held(folder), {**held(other), SIGNATURE_NAME: sign("colours", held(other))}]
    done, turns, opened = threading.Event(), 0, 0

    def swap() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            replace_dir(sets[turns % 2], folder)
            before = opened
            while opened == before and not done.is_set():
                time.sleep(0.0001)

    writer = threading.Thread(target=swap)
    writer.start()
    seen = set()
    try:
        while turns < 40 or len(seen) < 2:
            opened += 1
            seen.add(open_model(folder, key=key).contract.created)
    finally:
        done.set()
        writer.join()


def test_a_running_model_is_replaced_by_signed_models_only(
    folder: Path, key: Path, make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the signature comes after the files, as when a folder is copied."""
    monkeypatch.setattr(model_reloader, "POLL_SECONDS", 0.01)
    events: list[str] = []
    running = ReloadingClassifier(folder, on_event=events.append, key=key)
    first = running.current()

    def wait_for(line: str) -> None:
        until = time.monotonic() + PATIENCE
        while not (events and line in events[-1]):
            assert time.monotonic() < until, events
            time.sleep(0.02)

    new = held(make_folder(tmp_path / "new", created="2026-01-31T12:00:00Z"))
    replace_dir(new, folder)
    wait_for("rejected")
    assert "is not signed" in events[-1] and running.current() is first
    (folder / SIGNATURE_NAME).write_bytes(open_key(key.with_suffix(".key"))("colours", new))
    wait_for("replaced")
    assert running.current().model.contract.created == "2026-01-31T12:00:00Z"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not a public key in PEM form"),
        (b"-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n", "not a public key in PEM form"),
        (b"x" * 100_000, "is over 16,384 bytes"),
    ],
)
def test_a_file_without_a_public_key_raises_model_error(
    signed: Path, tmp_path: Path, text: bytes, reason: str
) -> None:
    (tmp_path / "k.pub").write_bytes(text)
    with pytest.raises(ModelError, match=reason):
        open_model(signed, key=tmp_path / "k.pub")


def test_a_private_key_is_rejected_with_the_command_to_extract_the_public_one(
    signed: Path, key: Path
) -> None:
    with pytest.raises(ModelError, match=r"is a private key.* openssl pkey"):
        open_model(signed, key=key.with_suffix(".key"))


def test_verify_prints_the_state_of_each_file(
    folder: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--verify", "--model", str(folder), "--key", str(key)]
    (folder / ONNX).unlink()
    assert main(command) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert str(folder / SIGNATURE_NAME) in first and read_key(key).sha256 in first
    assert {line.split()[0]: " ".join(line.split()[1:]) for line in lines} == {
        "colours_dynamic.tflite": VALID,
        TFLITE: VALID,
        ONNX: MISSING,
        INDEX_NAME: VALID,
    }


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "folder/"])
def test_verify_rejects_a_file_that_is_not_signed(
    name: str, folder: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the list, which shows it."""
    (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
    assert main(["--verify", "--model", str(folder), "--key", str(key)]) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith(f"error: {folder / SIGNATURE_NAME}: does not cover {name.strip('/')}: ")
    assert [state.split(maxsplit=1) for state in output.out.splitlines() if NOT_SIGNED in state] == [
        [name.strip("/"), NOT_SIGNED]
    ]


@pytest.mark.parametrize("name", [SIGNATURE_NAME, INDEX_NAME, TFLITE, "colours_dynamic.tflite", ONNX])
def test_verify_rejects_a_flipped_bit_in_any_signed_file(
    folder: Path, key: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(folder / name, 700)
    assert main(["--verify", "--model", str(folder), "--key", str(key)]) == 2
    output = capsys.readouterr()
    assert (
        output.out == ""
        and output.err.startswith(f"error: {folder / name}: ")
        and output.err.count("\n") == 1
    )


def test_verify_needs_a_key(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--verify", "--model", str(signed)]) == 2
    assert "--key PUBLIC.pem" in capsys.readouterr().err


# Every engine's way to be handed bytes is watched, in a process that has it imported beforehand, as the
# classifier's import-ahead thread would have.
WATCHED = """
import json, sys
from runtime.classify import main

handed = []

def watch(module, name):
    original = getattr(module, name)

    def watched(*args, **options):
        handed.append(name)
        return original(*args, **options)

    setattr(module, name, watched)

engine, photo, *cases = sys.argv[1:]
if engine == "onnx":
    import onnxruntime
    watch(onnxruntime, "InferenceSession")
elif engine == "openvino":
    import openvino
    watch(openvino.Core, "read_model")
else:
    from importlib import import_module
    from runtime.inference.engines import ENGINES
    watch(import_module(f"{ENGINES[engine].module}.interpreter"), "Interpreter")
for case in cases:
    before = len(handed)
    code = main([photo, "--engine", engine, *json.loads(case)])
    print(code, len(handed) - before, file=sys.stderr)
"""


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_bytes_that_fail_a_check_never_reach_an_engine(
    engine: str, signed: Path, colours: Path, photos: Path, key: Path, tmp_path: Path
) -> None:
    name = ONNX if ENGINES[engine].format == "onnx" else TFLITE

    def damaged(label: str, source: Path, *files: str) -> Path:
        folder = Path(shutil.copytree(source, tmp_path / label))
        for file in files:
            flip(folder / file, 700)
        return folder

    (tmp_path / "other").mkdir()
    lone = tmp_path / name
    lone.write_bytes((signed / name).read_bytes()[:-40])
    bad = [
        [damaged("file", colours, name) / name],
        [damaged("index", colours, INDEX_NAME) / name],
        [lone],
        [colours / name, "--key", key],
        [signed / name, "--key", new_key(tmp_path / "other")],
        [damaged("signed file", signed, name) / name, "--key", key],
        [damaged("signed index", signed, INDEX_NAME) / name, "--key", key],
        [damaged("signature", signed, SIGNATURE_NAME) / name, "--key", key],
    ]
    good = [[colours / name], [signed / name, "--key", key]]
    cases = [json.dumps(["--model", *map(str, case)]) for case in (*bad, *good)]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, engine, photos / "red.jpg", *cases],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    results = [line for line in done.stderr.splitlines() if line[:1].isdigit()]
    assert results == ["2 0"] * len(bad) + ["0 1"] * len(good), done.stderr
