"""Sign a model's folder: a device that holds the public key then runs what this key signed, and nothing else.

python -m export.sign FOLDER KEY signs a folder that is there; `python -m export --sign KEY` a new one.
The signature is the OpenSSF's, made by its model-signing library with a plain key, without a network;
runtime/signature.py reads it, and so does `model_signing verify key`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from export.output_dir import check_output_dir, replace_dir
from export.tempdir import temporary_dir
from runtime.common.errors import UserError
from runtime.common.text import printable
from runtime.model_file.files import INDEX_NAME, MAX_MODEL_BYTES, SIGNATURE_NAME, read_bytes
from runtime.model_file.index import Index, read_index
from runtime.model_file.signature import HASH_BY_CURVE, MAX_KEY_BYTES, PublicKey, signed_files
from train.cli import run_cli

PASSPHRASE_VARIABLE = "VGG_EDGE_KEY_PASSPHRASE"
NEEDED = "signing needs, in a clone of this project: pip install '.[sign]'"

# The folder's name and its files, by name → the bytes of model.sig.
Sign = Callable[[str, Mapping[str, bytes]], bytes]


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0 done, 2 a usage error, 130 stopped."""
    parser = argparse.ArgumentParser(prog="python -m export.sign", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder that python -m export wrote")
    parser.add_argument("key", type=Path, metavar="KEY", help="a private key, PEM; see the README")
    arguments = parser.parse_args(argv)
    return run_cli(lambda: sign_folder(arguments.folder, arguments.key), NEEDED, lambda: "nothing is signed")


def sign_folder(folder: Path, key: Path) -> int:
    """Puts a signature over what was exported in place of the one that `folder` had, if any.

    What else lies there stays, unsigned. Raises UserError: the export was rejected, or a file has changed.
    """
    index = read_index(folder)
    check_output_dir(folder)
    contents = {path.name: read_bytes(path, MAX_MODEL_BYTES) for path in sorted(folder.iterdir())}
    _check_proven(folder, index, contents.get("parity.csv"))
    sign = open_key(key)
    for file in index.files:
        if file.file in contents and hashlib.sha256(contents[file.file]).hexdigest() != file.sha256:
            raise UserError(f"{folder / file.file}: is not the file that was exported: not signed")
    exported = {file.file for file in index.files} | {INDEX_NAME, "README.md", "parity.csv"}
    signed = {name: data for name, data in contents.items() if name in exported}
    # The whole folder is swapped, so that who follows it sees a new model and not half a signature.
    replace_dir({**contents, SIGNATURE_NAME: sign(folder.name, signed)}, folder)
    print(printable(f"signed: {folder}: {', '.join(signed)}"))
    return 0


def _check_proven(folder: Path, index: Index, parity: bytes | None) -> None:
    """Raises UserError for a folder that an export rejected, or that says so of a file that it lists."""
    if folder.name.endswith(".rejected"):
        raise UserError(f"{folder}: was rejected, so it is not signed; export again")
    path = folder / "parity.csv"
    try:
        rows = list(csv.DictReader(io.StringIO((parity or b"").decode())))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}), so it is not signed; export again") from None
    listed = {(file.format, file.precision) for file in index.files}
    for row in rows:
        if (row.get("format"), row.get("precision")) in listed and row.get("verdict") != "holds":
            what = f"{row['format']} {row['precision']} in {row.get('engine')}"
            raise UserError(f"{path}: {what} does not hold, so it is not signed; export again")


def open_key(path: Path) -> Sign:
    """A private key made ready to sign with. Its passphrase is VGG_EDGE_KEY_PASSPHRASE, or is asked for.

    Raises UserError: not an elliptic-curve key on P-256, P-384 or P-521, the passphrase is wrong, or the
    extra `sign` is not installed.
    """
    if find_spec("model_signing") is None:
        raise UserError(f"model-signing is not installed; {NEEDED}")
    from model_signing import hashing, signing

    passphrase, public = _unlock(path)
    # Its hint says str, its call takes bytes alone.
    config = signing.Config().use_elliptic_key_signer(  # type: ignore[no-untyped-call]
        private_key=path,
        password=passphrase,  # type: ignore[arg-type]
    )
    config.set_hashing_config(
        hashing.Config().set_ignored_paths(  # type: ignore[no-untyped-call]
            paths=[SIGNATURE_NAME], ignore_git_paths=False
        )
    )

    def sign(name: str, files: Mapping[str, bytes]) -> bytes:
        with temporary_dir() as there:
            model, signature = there / name, there / f"{name}.sig"
            model.mkdir()
            for file, data in files.items():
                (model / file).write_bytes(data)
            config.sign(model, signature)
            bundle = signature.read_bytes()
        # As a device will read it: a library of tomorrow may write what runtime does not know.
        if signed_files(bundle, public) != {f: hashlib.sha256(data).hexdigest() for f, data in files.items()}:
            raise UserError(f"{name}: model-signing did not sign these files as they are")
        return bundle

    return sign


def _unlock(path: Path) -> tuple[bytes | None, PublicKey]:
    """The passphrase that opens the key, None where it needs none, and the public half."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem, passphrase = read_bytes(path, MAX_KEY_BYTES), None
    try:
        try:
            private = load_pem_private_key(pem, None)
        except TypeError:  # it is encrypted
            passphrase = _passphrase(path)
            private = load_pem_private_key(pem, passphrase)
    except UserError:
        raise
    except Exception:  # of damaged keys it raises more than it documents
        what = "is not a private key in PEM form" if passphrase is None else "does not open: wrong passphrase"
        raise UserError(f"{path}: {what}") from None
    if not isinstance(private, EllipticCurvePrivateKey) or private.curve.name not in HASH_BY_CURVE:
        raise UserError(
            f"{path}: is not an elliptic-curve key on P-256, P-384 or P-521: "
            "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out KEY makes one"
        )
    return passphrase, PublicKey(path, private.public_key())


def _passphrase(path: Path) -> bytes:
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given is None and not sys.stdin.isatty():
        raise UserError(f"{path}: is encrypted: give its passphrase in {PASSPHRASE_VARIABLE}")
    if given is None:
        from getpass import getpass

        given = getpass(f"passphrase of {path}: ")
    return given.encode()


if __name__ == "__main__":
    sys.exit(main())
