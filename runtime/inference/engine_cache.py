"""The fastest file, engine and number of threads that were measured on this machine.

`python -m runtime.bench --save` measures it, else the first start of a camera, a service or a folder of
photos times the engines (engine_timing.py). `--engine auto` uses this selection. It is one small JSON file
per model in the user's cache folder, named by the sha256 of the model's files. It is invalidated when these
files, an engine's version, the set of installed engines, the processor or the number of cores change.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runtime.common.atomic import atomic_write
from runtime.common.cpu_info import cpu_name
from runtime.common.text import pluralize
from runtime.common.user_cache import cache_home
from runtime.inference.engines import ENGINES, default_threads, engine_version, is_installed
from runtime.model_file.index import IndexedFile

MAX_BYTES = 2**16
_FIELD_TYPES = {
    "sha256": str,
    "engine": str,
    "threads": int,
    "median_ms": float,
    "measured": str,
    "others": dict,
}


@dataclass(frozen=True)
class EngineSelection:
    """The fastest file, engine and number of threads."""

    sha256: str  # of the file, one of the model's files
    engine: str  # one of ENGINES
    threads: int
    median_ms: float
    measured: str  # time of the measurement: ISO 8601, UTC
    # The other engines' times. Empty after a benchmark; otherwise all times are the shortest of the processor
    # for a picture on 1 thread.
    others: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.others:
            others = ", ".join(f"{engine} {ms:.1f} ms" for engine, ms in self.others.items())
            times = f"{self.median_ms:.1f} ms of processor time per picture on 1 thread, {others}"
            return f"{self.engine}, timed {self.measured[:10]}: {times}"
        latency = f"{self.median_ms:.1f} ms on {pluralize(self.threads, 'thread')}"
        return f"{self.engine}, measured {self.measured[:10]}: {latency}"


def save_selection(files: Collection[IndexedFile], fastest: EngineSelection) -> Path:
    """Saves the selection for the model of these files, and returns its path.

    Raises OSError, and RuntimeError when the user has no home folder.
    """
    path = _selection_path(files)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps({**asdict(fastest), "machine": _machine()}, indent=1).encode())
    return path


def load_selection(files: Collection[IndexedFile]) -> EngineSelection | str:
    """Returns the saved selection for the model of these files, or the reason why there is none."""
    if not files:
        return "a file without its model.json is not measured"
    try:
        path = _selection_path(files)
        if not path.is_file():
            return "not measured on this machine"
        with path.open("rb") as file:
            text = file.read(MAX_BYTES)
        return _parse(text, {file.sha256: file.format for file in files})
    except (ValueError, RecursionError):
        return f"{path} is damaged"
    except (OSError, RuntimeError) as error:
        return f"the measurement cannot be read ({error})"


def _parse(text: bytes, formats: Mapping[str, str]) -> EngineSelection | str:
    """Returns the selection, or why it is outdated. `formats` maps the sha256 of the model's files.

    Raises ValueError when `save_selection` did not write this text.
    """
    fields: Any = json.loads(text)
    if not isinstance(fields, dict) or not isinstance(saved := fields.get("machine"), dict):
        raise ValueError("not an object with a machine")
    if any(type(fields.get(name)) is not kind for name, kind in _FIELD_TYPES.items()):
        raise ValueError("a field is missing or has another type")
    current = _machine()
    changes = [
        f"{name} was {saved.get(name)}, is {current.get(name)}"
        for name in {**saved, **current}
        if saved.get(name) != current.get(name)
    ]
    if changes:
        return f"measured before a change: {', '.join(changes)[:300]}"
    fastest = EngineSelection(**{name: fields[name] for name in _FIELD_TYPES})
    if not ENGINES.keys() >= fastest.others.keys():
        raise ValueError("others are not engines")
    if not all(map(_is_time, fastest.others.values())):
        raise ValueError("others are not times")
    engine = ENGINES.get(fastest.engine)
    if engine is None or engine.format != formats.get(fastest.sha256) or fastest.engine not in current:
        raise ValueError("not for this model and machine")
    if not 1 <= fastest.threads <= default_threads() or not _is_time(fastest.median_ms):
        raise ValueError("not a measurement")
    return fastest


def _is_time(value: object) -> bool:
    return type(value) is float and math.isfinite(value)


def _machine() -> Mapping[str, Any]:
    """Returns the facts about this machine that a measurement depends on."""
    engines = {engine: engine_version(engine) for engine in ENGINES if is_installed(engine)}
    return {"cpu": cpu_name(), "cores": default_threads(), **engines}


def _selection_path(files: Collection[IndexedFile]) -> Path:
    model = hashlib.sha256(" ".join(sorted(file.sha256 for file in files)).encode()).hexdigest()
    return cache_home() / "fastest" / f"{model[:32]}.json"
