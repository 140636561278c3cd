"""A model's signature, checked before any of its bytes reaches an engine.

`model.sig` has the format of OpenSSF's model-signing library for a plain key: a Sigstore bundle with a DSSE
envelope around an in-toto statement, which lists every file's sha256. Reading it needs `cryptography` only.

https://github.com/sigstore/model-transparency, model_signing/_signing/signing.py: the statement
https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md: the signed bytes
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.common.errors import ModelError
from runtime.common.packages import install_command
from runtime.model_file.contract import parse_json
from runtime.model_file.files import INDEX_NAME, MAX_JSON_BYTES, MAX_MODEL_BYTES, SIGNATURE_NAME, read_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

MAX_KEY_BYTES = 2**14
HASH_BY_CURVE = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
WHOLE_FILE = "."  # the name under which a signature lists a file that was signed alone

VALID, MISSING, NOT_SIGNED = "valid", "missing", "not signed"

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_DAMAGED = "is damaged, or not a signature by `python -m export` or `model_signing sign key`"


@dataclass(frozen=True)
class PublicKey:
    """The public key of the only signer that is trusted."""

    path: Path
    ec: "EllipticCurvePublicKey"

    @property
    def sha256(self) -> str:
        """The sha256 of its PEM text as openssl writes it, which a signature names its key by."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        text = self.ec.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(text).hexdigest()


@dataclass(frozen=True)
class Signature:
    """A signature that was verified with the trusted key."""

    path: Path
    key: str  # the sha256 of the PublicKey
    files: Mapping[str, str]  # sha256 by file name; WHOLE_FILE for a file that was signed alone

    def check(self, path: Path, sha256: str) -> None:
        """Raises ModelError unless the signature covers a file with this sha256.

        A file whose name is signed must have the sha256 of that name: signed files cannot trade names.
        """
        signed = [self.files[path.name]] if path.name in self.files else self.files.values()
        if sha256 not in signed:
            raise ModelError(
                f"{path}: its sha256 ({sha256[:12]}…) is not signed in {self.path}: copy the model again"
            )


def read_signature(model: Path, key: str | Path) -> Signature:
    """Returns the signature of a model's folder, or of one file: FILE.sig, else the model.sig beside it.

    `key` is a PEM file with the public key. Does not read the signed files. Raises ModelError when there is
    no signature, it is damaged or by another key, or the key cannot be read.
    """
    public = read_key(key)
    path = model / SIGNATURE_NAME if model.is_dir() else model.with_name(f"{model.name}.sig")
    if not model.is_dir() and not path.exists():
        path = model.with_name(SIGNATURE_NAME)
    if not path.exists():
        raise ModelError(
            f"{model}: is not signed ({SIGNATURE_NAME} is missing), and only models signed by the key of "
            f"{public.path} may run: python -m export.sign signs it"
        )
    bundle = read_bytes(path, MAX_JSON_BYTES)
    try:
        return Signature(path, public.sha256, signed_files(bundle, public))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def read_key(path: str | Path) -> PublicKey:
    """Returns an elliptic-curve public key, P-256, P-384 or P-521, from its PEM file. Raises ModelError."""
    path = Path(path)
    try:
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        raise ModelError(
            f"{path}: checking signatures needs cryptography: {install_command('verify')}"
        ) from None
    pem = read_bytes(path, MAX_KEY_BYTES)
    if b"PRIVATE KEY-----" in pem:
        raise ModelError(
            f"{path}: is a private key, which stays with the signer: "
            f"openssl pkey -in {path} -pubout -out {path.stem}.pub makes the public one"
        )
    try:
        public = load_pem_public_key(pem)
    except Exception:  # it raises more types than it documents
        raise ModelError(f"{path}: is not a public key in PEM form") from None
    if not isinstance(public, EllipticCurvePublicKey) or public.curve.name not in HASH_BY_CURVE:
        raise ModelError(f"{path}: is not an elliptic-curve key on P-256, P-384 or P-521")
    return PublicKey(path, public)


def verify_files(signature: Signature) -> Mapping[str, str]:
    """Returns VALID, MISSING or NOT_SIGNED by the name of each file beside a signature.

    NOT_SIGNED files are listed only in a folder with an index: the folder of a single file may hold anything.
    Raises ModelError when a signed file differs.
    """
    folder = signature.path.parent
    states = {}
    for name in sorted(signature.files):
        path = folder / name if name != WHOLE_FILE else signature.path.with_suffix("")
        states[name] = VALID if path.is_file() else MISSING
        if path.is_file():
            signature.check(path, hashlib.sha256(read_bytes(path, MAX_MODEL_BYTES)).hexdigest())
    if (folder / INDEX_NAME).is_file():
        others = {path.name for path in folder.iterdir()} - {*states, signature.path.name}
        states |= dict.fromkeys(sorted(others), NOT_SIGNED)
    return states


def signed_files(bundle: bytes, key: PublicKey) -> Mapping[str, str]:
    """Returns the sha256 of each signed file by name, from a bundle whose signature is valid.

    The bundle must equal the bytes that the signer writes for its content, so that no byte can change
    unnoticed. Raises ModelError.
    """
    fields = _object(parse_json(bundle), "mediaType", "verificationMaterial", "dsseEnvelope")
    _require_equal(fields["mediaType"], _BUNDLE)
    material = _object(fields["verificationMaterial"], "publicKey", "tlogEntries")
    _require_equal(material["tlogEntries"], [])
    signer = _object(material["publicKey"], "hint")["hint"]
    envelope = _object(fields["dsseEnvelope"], "payload", "payloadType", "signatures")
    _require_equal(envelope["payloadType"], _PAYLOAD)
    if not isinstance(envelope["signatures"], list) or len(envelope["signatures"]) != 1:
        raise ModelError(_DAMAGED)
    entry = _object(envelope["signatures"][0], "sig", "keyid")
    _require_equal(entry["keyid"], "")
    _require_equal(bundle, _written_bundle(signer, envelope["payload"], entry["sig"]))
    payload, signature = _decode_base64(envelope["payload"]), _decode_base64(entry["sig"])
    if signer != key.sha256:
        is_sha256 = isinstance(signer, str) and re.fullmatch("[0-9a-f]{64}", signer)
        other = f"the key {signer[:12]}…" if is_sha256 else "another key"
        raise ModelError(f"is not signed by the key of {key.path} ({key.sha256[:12]}…) but by {other}")
    if not _is_valid(payload, signature, key):
        raise ModelError(f"the signature is not valid: it is damaged, or forged for the key of {key.path}")
    return dict(_resources(parse_json(payload)))


def _written_bundle(hint: Any, payload: Any, signature: Any) -> bytes:
    """Returns the bundle as model-signing 1.1 writes it: JSON without spaces, fields in this order."""
    envelope = {
        "payload": payload,
        "payloadType": _PAYLOAD,
        "signatures": [{"sig": signature, "keyid": ""}],
    }
    fields = {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": envelope,
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def _is_valid(payload: bytes, signature: bytes, key: PublicKey) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    signed = b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)
    try:
        key.ec.verify(signature, signed, ECDSA(getattr(hashes, HASH_BY_CURVE[key.ec.curve.name])()))
    except InvalidSignature:
        return False
    return True


def _resources(statement: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields names and digests. The key's owner wrote the statement, but maybe not about a model."""
    try:
        _require_equal(statement["_type"], _STATEMENT)
        _require_equal(statement["predicateType"], _PREDICATE)
        predicate = statement["predicate"]
        serialization = predicate["serialization"]
        if (serialization["method"], serialization["hash_type"]) != ("files", "sha256"):
            raise ModelError(
                "lists other digests than each file's sha256: sign it with python -m export.sign"
            )
        for resource in predicate["resources"]:
            _require_equal(resource["algorithm"], "sha256")
            if not isinstance(resource["name"], str) or not re.fullmatch("[0-9a-f]{64}", resource["digest"]):
                raise ModelError(_DAMAGED)
            yield resource["name"], resource["digest"]
    except (KeyError, TypeError, AttributeError):
        raise ModelError("the signature is valid, but not the signature of a model") from None


def _object(value: Any, *names: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise ModelError(_DAMAGED)
    return value


def _require_equal(value: Any, expected: Any) -> None:
    if value != expected:
        raise ModelError(_DAMAGED)


def _decode_base64(value: Any) -> bytes:
    """Decodes base64 in the only form that an encoder writes: the last character's unused bits are zero."""
    try:
        data = base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ModelError(_DAMAGED) from None
    if base64.b64encode(data).decode() != value:
        raise ModelError(_DAMAGED)
    return data
