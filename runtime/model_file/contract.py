"""The contract inside every model file: labels, input size, thresholds and origin, from untrusted JSON."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from runtime.common.errors import ModelError
from runtime.common.text import is_name
from runtime.model_file.files import MAX_JSON_BYTES

CONTRACT_VERSION = 2  # that an export writes
READABLE_VERSIONS = (1, 2)
RESIZE = "bilinear-antialias-stretch"  # the method of runtime/preprocess/picture.py

MAX_LABELS = 10_000
MAX_SIDE = 4096  # pixels
MAX_THRESHOLD = 1e38  # thresholds are compared with float32 outputs
MAX_FEATURES = 2**16
MAX_RELEASE = 2**31 - 1


@dataclass(frozen=True)
class GoldenAnswer:
    """The outputs of the trained float model for the picture of `golden_picture`."""

    probabilities: tuple[float, ...]  # [C]
    known: float | None  # None when the file has no such output


@dataclass(frozen=True)
class Contract:
    """The promises of a deployable model file.

    Input `image`, uint8 [1, H, W, 3], RGB, 0-255. Output `probabilities`, float32 [N, C], in the order of the
    labels. A file may add the output `known`, float32 [N, 1]: the probability that the picture shows one of
    the classes. Version 2 adds the output `features`, float32 [N, D], from which both are computed.
    """

    version: int  # one of READABLE_VERSIONS
    name: str
    labels: tuple[str, ...]  # C class names
    input_size: tuple[int, int]  # H, W
    resize: str
    thresholds: Mapping[str, float]  # by output name: "known", when the file has that output
    base_sha256: str
    data_sha256: str
    versions: Mapping[str, str]  # by package name
    created: str  # ISO 8601, UTC
    synthetic: bool  # trained on generated pictures: such a model is never a default
    # Since version 2.
    features: int | None = None  # D; None in version 1
    release: int = 0  # the n-th export to this folder, from 1; 0 in version 1
    golden: GoldenAnswer | None = None
    statistics_sha256: str = ""  # of the ModelStatistics in the file; empty when it has none
    # The sha256 of contract.json as the model file holds it: equal for all formats of one export. Empty for
    # a contract that was not read from a file.
    model_id: str = field(default="", compare=False)

    def to_fields(self) -> dict[str, Any]:
        """Returns the fields of contract.json, which are those of its version."""
        fields = asdict(self)
        del fields["model_id"]
        if self.version == 1:
            for name in VERSION_2_FIELDS:
                del fields[name]
        return fields

    def to_json(self) -> str:
        return json.dumps(self.to_fields(), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Contract":
        """Parses and checks every field, and ignores unknown fields. Raises ModelError."""
        contract = parse_contract(parse_json(text))
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        return replace(contract, model_id=hashlib.sha256(data).hexdigest())


VERSION_2_FIELDS = ("features", "release", "golden", "statistics_sha256")


def parse_contract(fields: dict[str, Any]) -> Contract:
    """Returns the contract that the fields describe, without a `model_id`. Raises ModelError."""
    _check_version(version := require_field(fields, "version", int))
    _check_labels(labels := require_field(fields, "labels", list))
    # The name is printed on terminals, stands in the service's answers and in tables, and begins file names.
    if not is_name(name := require_field(fields, "name", str)) or re.search(r"[/\\:]", name):
        raise ModelError(r"the name is not one of 1 to 200 printable characters without / \ and :")
    size = require_field(fields, "input_size", list)
    if len(size) != 2 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in size):
        raise ModelError(f"input_size must be [height, width], each 1 to {MAX_SIDE}")
    if (resize := require_field(fields, "resize", str)) != RESIZE:
        raise ModelError(
            f"needs pictures resized by {resize[:40]!r}, this runtime does {RESIZE!r}: upgrade vgg-edge"
        )
    thresholds = require_field(fields, "thresholds", dict)
    if not all(type(value) in (int, float) and abs(value) < MAX_THRESHOLD for value in thresholds.values()):
        raise ModelError("thresholds must be numbers by the name of an output")
    versions = require_field(fields, "versions", dict)
    if not all(isinstance(value, str) for value in versions.values()):
        raise ModelError("versions must be texts by the name of a package")
    created = require_field(fields, "created", str)
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", created):
        raise ModelError("created must be a UTC time such as 2025-01-31T12:00:00Z")
    contract = Contract(
        version=version,
        name=name,
        labels=tuple(labels),
        input_size=(size[0], size[1]),
        resize=resize,
        thresholds=thresholds,
        base_sha256=require_field(fields, "base_sha256", str),
        data_sha256=require_field(fields, "data_sha256", str),
        versions=versions,
        created=created,
        synthetic=require_field(fields, "synthetic", bool),
    )
    return _add_version_2(contract, fields) if version == 2 else contract


def _add_version_2(contract: Contract, fields: dict[str, Any]) -> Contract:
    features = require_field(fields, "features", int)
    if not 1 <= features <= MAX_FEATURES:
        raise ModelError(f"features must be 1 to {MAX_FEATURES:,}")
    release = require_field(fields, "release", int)
    if not 1 <= release <= MAX_RELEASE:
        raise ModelError(f"release must be 1 to {MAX_RELEASE:,}")
    statistics_sha256 = require_field(fields, "statistics_sha256", str)
    if not re.fullmatch(r"([0-9a-f]{64})?", statistics_sha256):
        raise ModelError("statistics_sha256 must be 64 hexadecimal digits, or empty")
    golden = _parse_golden(
        require_field(fields, "golden", dict), len(contract.labels), "known" in contract.thresholds
    )
    return replace(
        contract, features=features, release=release, golden=golden, statistics_sha256=statistics_sha256
    )


def _parse_golden(fields: dict[str, Any], classes: int, has_known: bool) -> GoldenAnswer:
    probabilities = require_field(fields, "probabilities", list)
    if len(probabilities) != classes or not all(map(_is_probability, probabilities)):
        raise ModelError("golden.probabilities must be one number from 0 to 1 for each label")
    known = fields.get("known")
    if (known is not None) != has_known or not (known is None or _is_probability(known)):
        raise ModelError("golden.known must be a number from 0 to 1, or null without a threshold for `known`")
    return GoldenAnswer(tuple(map(float, probabilities)), None if known is None else float(known))


def _is_probability(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # NaN fails this comparison


def _check_version(version: int) -> None:
    if version not in READABLE_VERSIONS:
        next_step = "upgrade vgg-edge" if version > CONTRACT_VERSION else "export the model again"
        raise ModelError(
            f"has contract version {str(version)[:12]}, "
            f"this runtime reads versions {' and '.join(map(str, READABLE_VERSIONS))}: {next_step}"
        )


def _check_labels(labels: list[Any]) -> None:
    if not 2 <= len(labels) <= MAX_LABELS or len(set(map(str, labels))) != len(labels):
        raise ModelError(f"labels must be 2 to {MAX_LABELS:,} different names")
    # Labels are printed on terminals: a label that could move the cursor is refused here.
    if not all(isinstance(label, str) and is_name(label) for label in labels):
        raise ModelError("a label is not a name of printable characters")


def parse_json(text: str | bytes, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Returns the JSON object in a text of at most `limit` bytes from any source. Raises ModelError."""
    if len(text) > limit:
        raise ModelError(f"is over {limit:,} bytes, more than it can be")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise ModelError("is not JSON") from None
    if not isinstance(fields, dict):
        raise ModelError("is not a JSON object")
    return fields


def require_field(fields: dict[str, Any], name: str, kind: type) -> Any:
    """Returns a field of exactly this type: True is no int. Raises ModelError."""
    if name not in fields:
        raise ModelError(f"lacks the field {name!r}")
    if type(fields[name]) is not kind:
        raise ModelError(f"the field {name!r} is not of type {kind.__name__}")
    return fields[name]


def parse_origin(fields: dict[str, Any]) -> tuple[str, str]:
    """Returns the model_id and the creation time of a file that was fitted to a model. Raises ModelError."""
    model_id, created = (require_field(fields, name, str) for name in ("model_id", "created"))
    if not re.fullmatch("[0-9a-f]{64}", model_id):
        raise ModelError("has no model_id of 64 hexadecimal digits")
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", created):
        raise ModelError("was not created at a UTC time such as 2025-01-31T12:00:00Z")
    return model_id, created
