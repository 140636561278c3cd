"""The contract inside every model file: what the file promises, parsed from hostile JSON."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from runtime.common.errors import ModelError
from runtime.common.text import is_name
from runtime.model_file.files import MAX_JSON_BYTES

CONTRACT_VERSION = 1
RESIZE = "bilinear-antialias-stretch"  # the method of runtime/preprocess/picture.py

MAX_LABELS = 10_000
MAX_SIDE = 4096  # pixels
MAX_THRESHOLD = 1e38  # thresholds are compared with float32 outputs


@dataclass(frozen=True)
class Contract:
    """What a deployable model file promises.

    Input `image`, uint8 [1, H, W, 3], RGB, 0-255. Output `probabilities`, float32 [N, C], in the order of the
    labels. A file may add the output `known`, float32 [N, 1]: the probability that the picture shows one of
    the classes.
    """

    version: int
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

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Contract":
        """Parses and checks every field, and ignores unknown fields. Raises ModelError."""
        return parse_contract(parse_json(text))


def parse_contract(fields: dict[str, Any]) -> Contract:
    """Returns the contract that the fields describe. Raises ModelError."""
    _check_version(require_field(fields, "version", int))
    _check_labels(labels := require_field(fields, "labels", list))
    # The name is printed on terminals and stands in the service's answers and in tables.
    if not is_name(name := require_field(fields, "name", str)):
        raise ModelError("the name is not one of 1 to 200 printable characters")
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
    return Contract(
        version=CONTRACT_VERSION,
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


def _check_version(version: int) -> None:
    if version != CONTRACT_VERSION:
        next_step = "upgrade vgg-edge" if version > CONTRACT_VERSION else "export the model again"
        raise ModelError(
            f"has contract version {str(version)[:12]}, "
            f"this runtime reads version {CONTRACT_VERSION}: {next_step}"
        )


def _check_labels(labels: list[Any]) -> None:
    if not 2 <= len(labels) <= MAX_LABELS or len(set(map(str, labels))) != len(labels):
        raise ModelError(f"labels must be 2 to {MAX_LABELS:,} different names")
    # Labels are printed on terminals: a label that could move the cursor is refused here.
    if not all(isinstance(label, str) and is_name(label) for label in labels):
        raise ModelError("a label is not a name of printable characters")


def parse_json(text: str | bytes) -> dict[str, Any]:
    """Returns the JSON object in a text from any source. Raises ModelError."""
    if len(text) > MAX_JSON_BYTES:
        raise ModelError(f"is over {MAX_JSON_BYTES:,} bytes, more than it can be")
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
