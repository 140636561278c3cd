"""Sign a model folder with a private key, so that a device with the public key can verify it.

`python -m export.sign FOLDER KEY` signs an existing folder, `python -m export --sign KEY` a new one. The
signature has the OpenSSF model-signing format and is made with a key file, without a network.
runtime/model_file/signature.py reads it, and so does `model_signing verify key`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from export.output_dir import (
    CARD_NAME,
    PARITY_NAME,
    TARGETS_NAME,
    check_output_dir,
    listed_files,
    replace_dir,
)
from export.parity.gates import PASSED, TOO_FEW_PHOTOS
from export.tempdir import temporary_dir
from runtime.common.cli import ArgumentParser
from runtime.common.errors import UserError
from runtime.common.packages import install_command
from runtime.common.terminal import print_info
from runtime.common.text import printable
from runtime.model_file.files import INDEX_NAME, MAX_MODEL_BYTES, SIGNATURE_NAME, read_bytes
from runtime.model_file.index import Index, read_index
from runtime.model_file.signature import HASH_BY_CURVE, MAX_KEY_BYTES, PublicKey, signed_files
from train.cli import run_cli

PASSPHRASE_VARIABLE = "VGG_EDGE_KEY_PASSPHRASE"

# The name of the folder, and the bytes of its files by name → the bytes of model.sig.
Sign = Callable[[str, Mapping[str, bytes]], bytes]

_SIGNED_VERDICTS = (PASSED, TOO_FEW_PHOTOS)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 2 (usage error) or 130 (Ctrl-C)."""
    parser = ArgumentParser(prog="python -m export.sign", description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="a model folder that python -m export wrote"
    )
    parser.add_argument(
        "key", type=Path, metavar="KEY", help="a private key on curve P-256, P-384 or P-521 (PEM)"
    )
    arguments = parser.parse_args(argv)
    return run_cli(
        lambda: sign_folder(arguments.folder, arguments.key), lambda: "nothing was signed", extras="sign"
    )


def sign_folder(folder: Path, key: Path) -> int:
    """Signs the exported files in `folder`, and replaces an older signature. Returns the exit code 0.

    Other files in the folder stay, unsigned. Raises UserError when the export was rejected or a file changed.
    """
    sign = open_key(key)  # first: it may wait for the passphrase, while another export replaces the folder
    index = read_index(folder)
    contents = _read_contents(folder)
    check_output_dir(folder, contents)
    _check_parity(folder, index, contents.get(PARITY_NAME))
    listed = {file.file: file.sha256 for file in index.files}
    listed |= listed_files(folder / TARGETS_NAME, contents.get(TARGETS_NAME))
    for name, sha256 in listed.items():
        if name in contents and hashlib.sha256(contents[name]).hexdigest() != sha256:
            raise UserError(
                f"{folder / name}: differs from the exported file, so the folder is not signed; export again"
            )
    exported = {*listed, INDEX_NAME, CARD_NAME, PARITY_NAME, TARGETS_NAME}
    signed = {name: data for name, data in contents.items() if name in exported}
    signature = sign(folder.name, signed)
    if _read_contents(folder) != contents:
        raise UserError(f"{folder}: changed while it was signed; sign it again")
    # The whole folder is replaced, so that a device that reloads it never reads half a signature.
    replace_dir({**contents, SIGNATURE_NAME: signature}, folder)
    print(printable(f"signed: {folder}: {', '.join(signed)}"))
    if unsigned := sorted(contents.keys() - signed.keys() - {SIGNATURE_NAME}):
        print_info(
            f"not signed: {', '.join(unsigned)}: `runtime.classify --verify` rejects the folder with them"
        )
    return 0


def _read_contents(folder: Path) -> dict[str, bytes]:
    return {path.name: read_bytes(path, MAX_MODEL_BYTES) for path in sorted(folder.iterdir())}


def _check_parity(folder: Path, index: Index, parity: bytes | None) -> None:
    """Raises UserError for a rejected export, or unless parity.csv reports that no listed file failed."""
    if folder.name.endswith(".rejected"):
        raise UserError(f"{folder}: is a rejected export, so it is not signed; export again")
    path = folder / PARITY_NAME
    try:
        rows = list(csv.DictReader(io.StringIO((parity or b"").decode())))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}), so it is not signed; export again") from None
    listed = {(file.format, file.precision) for file in index.files}
    compared = {(row.get("format"), row.get("precision")) for row in rows}
    if missing := sorted(listed - compared):
        raise UserError(
            f"{path}: has no comparison of {' '.join(missing[0])}, so the folder is not signed; export again"
        )
    for row in rows:
        if (row.get("format"), row.get("precision")) in listed and row.get("verdict") not in _SIGNED_VERDICTS:
            pair = f"{row['format']} {row['precision']} in {row.get('engine')}"
            raise UserError(f"{path}: {pair} failed parity, so the folder is not signed; export again")


def open_key(path: Path) -> Sign:
    """The function that signs with this private key.

    The passphrase is VGG_EDGE_KEY_PASSPHRASE, or is read from the terminal. Raises UserError when the key is
    not on curve P-256, P-384 or P-521, the passphrase is wrong, or the extra `sign` is not installed.
    """
    if find_spec("model_signing") is None:
        raise UserError(f"model-signing is not installed: {install_command('sign')}")
    from model_signing import hashing, signing

    passphrase, public = _unlock(path)
    # model-signing's type hint is str, but it accepts only bytes.
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
        with temporary_dir() as temporary:
            model, signature = temporary / name, temporary / f"{name}.sig"
            model.mkdir()
            for file, data in files.items():
                (model / file).write_bytes(data)
            config.sign(model, signature)
            bundle = signature.read_bytes()
        # Verified with the device's reader, because a later model-signing may write another format.
        if signed_files(bundle, public) != {f: hashlib.sha256(data).hexdigest() for f, data in files.items()}:
            raise UserError(
                f"{name}: model-signing wrote a signature that a device cannot verify; install model-signing "
                "1.1"
            )
        return bundle

    return sign


def _unlock(path: Path) -> tuple[bytes | None, PublicKey]:
    """The passphrase (None: the key is not encrypted) and the public key."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem, passphrase = read_bytes(path, MAX_KEY_BYTES), None
    try:
        try:
            private = load_pem_private_key(pem, None)
        except TypeError:  # the key is encrypted
            passphrase = _passphrase(path)
            private = load_pem_private_key(pem, passphrase)
    except UserError:
        raise
    except Exception:  # for damaged keys, it raises more types than it documents
        reason = "is not a private key in PEM form"
        reason = reason if passphrase is None else "cannot be decrypted: wrong passphrase; try again"
        raise UserError(f"{path}: {reason}") from None
    if not isinstance(private, EllipticCurvePrivateKey) or private.curve.name not in HASH_BY_CURVE:
        raise UserError(
            f"{path}: is not an elliptic-curve key on P-256, P-384 or P-521; make one with: "
            "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out KEY"
        )
    return passphrase, PublicKey(path, private.public_key())


def _passphrase(path: Path) -> bytes:
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given is None and not sys.stdin.isatty():
        raise UserError(f"{path}: is encrypted; set its passphrase in {PASSPHRASE_VARIABLE}")
    if given is None:
        from getpass import getpass

        given = getpass(f"passphrase of {path}: ")
    return given.encode()


if __name__ == "__main__":
    sys.exit(main())
