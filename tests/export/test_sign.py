"""Signatures are accepted by a device and by model_signing's own command; unusable keys are refused."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from export.__main__ import main as export_main
from export.sign import PASSPHRASE_VARIABLE, Sign, main, open_key
from export.targets.stage import TARGETS_NAME
from runtime.classify import main as classify_main
from runtime.common.errors import ModelError
from runtime.model_file.files import INDEX_NAME, SIGNATURE_NAME
from runtime.model_file.loader import KEY_VARIABLE, open_model
from runtime.model_file.signature import NOT_SIGNED, read_key, read_signature, signed_files, verify_files
from tests.helpers import RELEASED


def write_key(path: Path, private: object, passphrase: bytes | None = None) -> Path:
    """KEY, and KEY.pub beside it."""
    pem, text = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    lock = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    path.write_bytes(private.private_bytes(pem, text, lock))  # type: ignore[attr-defined]
    public = private.public_key()  # type: ignore[attr-defined]
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    path.with_suffix(".pub").write_bytes(public.public_bytes(pem, info))
    return path


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_key(tmp_path_factory.mktemp("keys") / "maker.key", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RELEASED, tmp_path / "flowers"))


def model_signing(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The library's own command."""
    return subprocess.run(
        [sys.executable, "-m", "model_signing", *arguments], capture_output=True, text=True, check=False
    )


def test_a_whole_folder_is_signed_and_the_librarys_command_verifies_it(
    folder: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main([str(folder), str(key)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (str(folder), *before))
    signature = read_signature(folder, key.with_suffix(".pub"))
    assert signature.files == {name: hashlib.sha256(data).hexdigest() for name, data in before.items()}
    assert {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != SIGNATURE_NAME
    } == before
    verify = (
        "verify",
        "key",
        "--public_key",
        key.with_suffix(".pub"),
        "--signature",
        folder / SIGNATURE_NAME,
    )
    done = model_signing(*verify, folder)
    assert done.returncode == 0, done.stderr
    (folder / "README.md").write_text("another card")
    assert model_signing(*verify, folder).returncode != 0


@pytest.mark.parametrize(
    "curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name
)
def test_a_signature_by_the_librarys_command_is_accepted(
    folder: Path, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    key = write_key(tmp_path / "stock.key", ec.generate_private_key(curve))
    sign = ("sign", "key", "--private_key", key, "--signature")
    assert model_signing(*sign, folder / SIGNATURE_NAME, folder).returncode == 0
    assert open_model(folder, key=key.with_suffix(".pub")).signature
    # A single file: its signature lists it as ".".
    lone = Path(shutil.copy(folder / "flowers_int8.tflite", tmp_path / "mine.tflite"))
    assert model_signing(*sign, tmp_path / "mine.tflite.sig", lone).returncode == 0
    assert open_model(lone, key=key.with_suffix(".pub")).signature


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda statement: statement.update(_type="https://in-toto.io/Statement/v0.1"), "is damaged"),
        (lambda statement: statement.update(predicateType="https://slsa.dev/provenance/v1"), "is damaged"),
        (lambda statement: statement.pop("predicate"), "is valid, but not the signature of a model"),
        (lambda statement: statement["predicate"]["serialization"].update(method="shards"), "other digests"),
        (lambda statement: statement["predicate"]["resources"][0].update(algorithm="md5"), "is damaged"),
        (lambda statement: statement["predicate"]["resources"][0].update(digest="0" * 32), "is damaged"),
        (lambda statement: statement["predicate"]["resources"][0].update(name=1), "is damaged"),
    ],
)
def test_another_statement_by_the_same_key_is_not_the_signature_of_a_model(
    change: Callable[[dict[str, Any]], object], reason: str, key: Path
) -> None:
    """A key may sign statements of other kinds, such as where a file was built."""
    private, public = load_pem_private_key(key.read_bytes(), None), read_key(key.with_suffix(".pub"))
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    bundle = json.loads(open_key(key)("m", {"a.txt": b"a"}))
    envelope = bundle["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))

    def sign_statement() -> bytes:
        payload, kind = json.dumps(statement).encode(), envelope["payloadType"].encode()
        signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
        envelope["payload"] = base64.b64encode(payload).decode()
        signature = private.sign(signed, ec.ECDSA(hashes.SHA256()))
        envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
        return json.dumps(bundle, separators=(",", ":")).encode()

    assert signed_files(sign_statement(), public) == {"a.txt": hashlib.sha256(b"a").hexdigest()}
    change(statement)
    with pytest.raises(ModelError, match=reason):
        signed_files(sign_statement(), public)


def test_signing_again_replaces_the_signature(folder: Path, key: Path, tmp_path: Path) -> None:
    other = write_key(tmp_path / "other.key", ec.generate_private_key(ec.SECP256R1()))
    assert main([str(folder), str(key)]) == main([str(folder), str(other)]) == 0
    assert SIGNATURE_NAME not in read_signature(folder, other.with_suffix(".pub")).files


def test_a_damaged_folder_is_not_signed(folder: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "flowers_int8.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    assert main([str(folder), str(key)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ") and "not signed" in line
    assert not (folder / SIGNATURE_NAME).exists()


def test_an_export_that_failed_parity_is_not_signed(
    folder: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rejected = folder.rename(folder.with_name("flowers.rejected"))
    assert main([str(rejected), str(key)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {rejected}: ") and "rejected" in line
    folder = rejected.rename(folder)
    parity = folder / "parity.csv"
    rows = list(csv.reader(parity.read_text().splitlines()))
    at = next(n for n, row in enumerate(rows) if row[:2] == ["onnx", "int8"])
    rows[at][-1] = "failed: max |Δp| 0.3 is over 0.25"
    parity.write_text("\n".join(",".join(row) for row in rows))
    assert main([str(folder), str(key)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {parity}: onnx int8 in {rows[at][2]} ")
    parity.write_bytes(b"format,precision\n\xff")
    assert main([str(folder), str(key)]) == 2
    assert f"error: {parity}: " in capsys.readouterr().err
    parity.write_text("\n".join(",".join(row) for row in rows if row[:2] != ["onnx", "int8"]))
    assert main([str(folder), str(key)]) == 2
    assert f"error: {parity}: has no comparison of onnx int8, " in capsys.readouterr().err
    rows[at][1] = "float16"  # the failed file was not kept
    parity.write_text("\n".join(",".join(row) for row in rows))
    assert main([str(folder), str(key)]) == 0


def test_a_folder_that_an_export_replaces_meanwhile_is_not_written_over(
    folder: Path, key: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def export_then_sign(name: str, files: Mapping[str, bytes]) -> bytes:
        (folder / "README.md").write_text("the new export")
        return sign(name, files)

    sign = open_key(key)
    monkeypatch.setattr("export.sign.open_key", lambda path: export_then_sign)
    assert main([str(folder), str(key)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {folder}: changed while it was signed; sign it again"
    assert (folder / "README.md").read_text() == "the new export" and not (folder / SIGNATURE_NAME).exists()


def test_the_files_are_read_after_the_passphrase_was_typed(
    folder: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_then_open(path: Path) -> Sign:
        (folder / "README.md").write_text("the new export")
        return open_key(path)

    monkeypatch.setattr("export.sign.open_key", export_then_open)
    assert main([str(folder), str(key)]) == 0
    assert (folder / "README.md").read_text() == "the new export"


def test_files_that_were_not_exported_stay_unsigned(
    folder: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder.rename(folder.with_name("a\x1b[2J"))
    (folder / "notes.txt").write_text("mine")
    (folder / "flowers_other.tflite").write_bytes(b"TFL3")
    assert main([str(folder), str(key)]) == 0
    beside = verify_files(read_signature(folder, key.with_suffix(".pub")))
    unsigned = {name for name, state in beside.items() if state == NOT_SIGNED}
    assert unsigned == {"flowers_other.tflite", "notes.txt"}
    assert (folder / "notes.txt").read_text() == "mine"
    printed = capsys.readouterr()
    assert "/a\\x1b[2J: README.md" in printed.out and "notes.txt" not in printed.out
    (line,) = printed.err.splitlines()
    assert "flowers_other.tflite, notes.txt" in line and "--verify" in line


def test_the_files_of_targets_are_signed_and_verified(
    folder: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled = folder / "flowers_ethos-u55.tflite"
    compiled.write_bytes(b"compiled")
    files = {compiled.name: hashlib.sha256(b"compiled").hexdigest()}
    (folder / TARGETS_NAME).write_text(json.dumps([{"target": "ethos-u55", "files": files}]))
    assert main([str(folder), str(key)]) == 0
    verify = ["--model", str(folder), "--verify", "--key", str(key.with_suffix(".pub"))]
    capsys.readouterr()
    assert classify_main(verify) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert printed[compiled.name] == printed[TARGETS_NAME] == "valid"
    compiled.write_bytes(b"replaced")
    assert classify_main(verify) == main([str(folder), str(key)]) == 2
    verified, signed = capsys.readouterr().err.splitlines()
    assert verified.startswith(f"error: {compiled}: ") and signed.startswith(f"error: {compiled}: differs")


def test_a_full_disk_is_one_line(
    folder: Path, key: Path, full_disk: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), str(key)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: temporary files: ") and "TMPDIR" in line
    assert not (folder / SIGNATURE_NAME).exists()


def test_an_encrypted_key_needs_its_passphrase(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = write_key(tmp_path / "locked.key", ec.generate_private_key(ec.SECP256R1()), b"open sesame")
    command = [str(folder), str(key)]
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    assert main(command) == 2
    assert PASSPHRASE_VARIABLE in capsys.readouterr().err
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "open")
    assert main(command) == 2
    assert "wrong passphrase" in capsys.readouterr().err
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "open sesame")
    assert main(command) == 0
    assert read_signature(folder, key.with_suffix(".pub"))


def test_a_key_of_another_kind_is_refused(
    folder: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edwards = write_key(tmp_path / "ed.key", ed25519.Ed25519PrivateKey.generate())
    bitcoin = write_key(tmp_path / "k1.key", ec.generate_private_key(ec.SECP256K1()))
    (tmp_path / "not.key").write_text("-----BEGIN PRIVATE KEY-----\nno\n-----END PRIVATE KEY-----\n")
    for path, reason in (
        (edwards, "not an elliptic-curve key on P-256"),
        (bitcoin, "not an elliptic-curve key on P-256"),
        (key.with_suffix(".pub"), "not a private key in PEM form"),
        (tmp_path / "not.key", "not a private key in PEM form"),
        (tmp_path / "nowhere.key", "no such file"),
    ):
        assert main([str(folder), str(path)]) == 2
        (line,) = capsys.readouterr().err.lower().splitlines()
        assert line.startswith(f"error: {str(path).lower()}: ") and reason.lower() in line
    assert not (folder / SIGNATURE_NAME).exists()


def test_an_export_signs_the_files_that_it_writes(
    synthetic_run: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signature covers exactly the written files."""
    monkeypatch.setenv(KEY_VARIABLE, str(key.with_suffix(".pub")))
    out = tmp_path / "small"
    options = ["--float16", "--engines", "litert", "--photos", "1", "--keep", "float32.tflite"]
    command = [str(synthetic_run), "--out", str(out), *options, "--sign", str(key)]
    assert export_main(command) == 0
    kept = {"small_float32.tflite", INDEX_NAME, "parity.csv", "README.md"}
    assert {path.name for path in out.iterdir()} == {*kept, SIGNATURE_NAME}
    assert set(open_model(out).signature.files) == kept  # type: ignore[union-attr]


def test_a_missing_key_stops_an_export_before_conversion(
    synthetic_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(synthetic_run), "--out", str(tmp_path / "m"), "--sign", str(tmp_path / "nowhere")]
    assert export_main(command) == 2
    printed = capsys.readouterr()
    assert str(tmp_path / "nowhere") in printed.err and "convert" not in printed.out
