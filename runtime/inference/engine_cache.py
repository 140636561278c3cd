"""The fastest way to run a model on this machine, as `python -m runtime.bench --save` measured it.

`--engine auto` takes it. It is kept in the user's cache, in one small file a model, whose name comes from the
sha256 of the model's files; it is void once these, an engine's version, the installed engines, the processor
or the number of its cores change.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.common.atomic import atomic
from runtime.common.cpu_info import cpu
from runtime.common.user_cache import cache_home
from runtime.inference.engines import ENGINES, FORMATS_OF, default_threads, engine_version, is_installed
from runtime.model_file.index import IndexedFile

MAX_BYTES = 2**16
_KINDS = {"sha256": str, "engine": str, "threads": int, "median_ms": float, "measured": str}


@dataclass(frozen=True)
class EngineSelection:
    """The file, engine and number of threads with the smallest median."""

    sha256: str  # of the file, one of the model's
    engine: str  # one of ENGINES
    threads: int
    median_ms: float
    measured: str  # when: ISO 8601, UTC

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.engine}, measured {self.measured[:10]}: {self.median_ms:.1f} ms on {threads}"


def save_selection(files: Collection[IndexedFile], fastest: EngineSelection) -> Path:
    """Keeps it for the model of these files. Raises OSError, and RuntimeError where there is no home."""
    path = _path(files)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(json.dumps({**asdict(fastest), "machine": _machine()}, indent=1).encode())
    return path


def load_selection(files: Collection[IndexedFile]) -> EngineSelection | str:
    """What was kept for the model of these files, or why there is nothing to go by."""
    if not files:
        return "without its model.json a file is not looked up"
    try:
        path = _path(files)
        if not path.is_file():
            return "not measured on this machine"
        with path.open("rb") as file:
            text = file.read(MAX_BYTES)
        return _parse(text, {file.sha256: file.format for file in files})
    except (ValueError, RecursionError):  # whatever lies there
        return f"{path} is damaged"
    except (OSError, RuntimeError) as error:
        return f"what was measured cannot be read ({error})"


def _parse(text: bytes, formats: Mapping[str, str]) -> EngineSelection | str:
    """`formats` by the sha256 of the model's files. Raises ValueError when `save` did not write this."""
    fields: Any = json.loads(text)
    if not isinstance(fields, dict) or not isinstance(was := fields.get("machine"), dict):
        raise ValueError("no object with a machine")
    if any(type(fields.get(name)) is not kind for name, kind in _KINDS.items()):
        raise ValueError("a field is missing or of another type")
    now = _machine()
    changed = [
        f"{name} was {was.get(name)}, is {now.get(name)}"
        for name in {**was, **now}
        if was.get(name) != now.get(name)
    ]
    if changed:
        return f"measured before a change: {', '.join(changed)[:300]}"
    fastest = EngineSelection(**{name: fields[name] for name in _KINDS})
    fits = FORMATS_OF.get(fastest.engine) == formats.get(fastest.sha256, "") and fastest.engine in now
    if not fits or not 1 <= fastest.threads <= default_threads() or not math.isfinite(fastest.median_ms):
        raise ValueError("not of this model and machine")
    return fastest


def _machine() -> Mapping[str, Any]:
    """What the measurement holds for, beside the model."""
    engines = {engine: engine_version(engine) for engine in ENGINES if is_installed(engine)}
    return {"cpu": cpu(), "cores": default_threads(), **engines}


def _path(files: Collection[IndexedFile]) -> Path:
    model = hashlib.sha256(" ".join(sorted(file.sha256 for file in files)).encode()).hexdigest()
    return cache_home() / "fastest" / f"{model[:32]}.json"
