"""The JSON of /status: model, latency, camera and history."""

import statistics
from dataclasses import dataclass
from typing import Any

from runtime.common.errors import ModelError
from runtime.inference.classifier import Classifier
from runtime.inference.engines import engine_name
from runtime.model_file.index import read_index
from runtime.server.inference_queue import InferenceQueue
from runtime.server.live_view import LiveView
from runtime.server.scene_adapter import SceneAdapter, correction_fields
from runtime.server.service_state import ServiceState

PARITY_METRICS = ("n", "top1", "agreement", "mean_dp", "max_dp")


@dataclass(frozen=True)
class FileStatus:
    """The parts of /status that come from files and folders."""

    parity: dict[str, Any] | None  # of the model in use
    tray: dict[str, Any]
    learning: dict[str, Any]


def read_file_status(service: ServiceState) -> FileStatus:
    """Call it off the event loop: a folder may be slow."""
    return FileStatus(
        _parity(service.queue.model.current()), tray_status(service.adapter), service.learner.status()
    )


def service_status(service: ServiceState, files: FileStatus) -> dict[str, Any]:
    """The fields of openapi.json's schema Status."""
    queue, live_view = service.queue, service.live_view
    classifier = queue.model.current()
    return {
        "model": model_status(classifier) | {"parity": files.parity},
        "engine": classifier.session.engine,
        "threads": classifier.threads,
        "news": queue.model.last_event,
        "speed": latency(queue),
        "camera": None if live_view is None else camera_status(live_view),
        "history": [] if live_view is None else list(live_view.history),
        "correction": correction_fields(classifier.correction) if classifier.correction else None,
        "reject": classifier.reject,
        "tray": files.tray,
        "learning": files.learning,
        "max_bytes": queue.max_upload_bytes,
    }


def model_status(classifier: Classifier) -> dict[str, Any]:
    """The model in use: its contract and its file."""
    model, contract = classifier.model, classifier.model.contract
    return {
        "name": contract.name,
        "labels": list(classifier.labels),
        "input": list(contract.input_size),
        "created": contract.created,
        "synthetic": contract.synthetic,
        "file": model.path.name,
        "format": model.format,
        "precision": model.precision,
        "bytes": len(model.data),
        "sha256": model.sha256,
    }


def latency(queue: InferenceQueue) -> dict[str, int | float | None]:
    """Milliseconds per photo over the last photos; None before the first photo."""
    totals = sorted(1000 * timing.total for timing in queue.timings)

    def percentile(share: float) -> float | None:
        return round(totals[min(len(totals) - 1, int(share * len(totals)))], 1) if totals else None

    def median(seconds: list[float]) -> float | None:
        return round(1000 * statistics.median(seconds), 1) if seconds else None

    return {
        "photos": queue.answered,
        "p50_ms": percentile(0.5),
        "p95_ms": percentile(0.95),
        "decode_ms": median([timing.decode for timing in queue.timings]),
        "infer_ms": median([timing.infer for timing in queue.timings]),
    }


def camera_status(view: LiveView) -> dict[str, Any]:
    latest = view.latest
    height, width = latest.frame.pixels.shape[:2] if latest else (None, None)
    return {
        "name": view.camera.name,
        "problem": view.problem,
        "width": width,
        "height": height,
        "fps": latest.fps if latest else None,
        "age_ms": latest.age_ms if latest else None,
    }


def tray_status(adapter: SceneAdapter) -> dict[str, Any]:
    unavailable = adapter.unavailable()
    ids = [] if unavailable else adapter.tray().ids()
    return {"unavailable": unavailable, "photos": len(ids), "newest": ids[-1] if ids else None}


def _parity(classifier: Classifier) -> dict[str, Any] | None:
    """The file's parity metrics for the engine in use (any version), from model.json; None if it has none.

    Values that are not numbers are left out.
    """
    model, engine = classifier.model, classifier.session.engine
    try:
        index = read_index(model.path.parent, model.signature)
    except ModelError:
        return None
    by_engine = next(
        (file.metrics.get("parity") for file in index.files if file.sha256 == model.sha256), None
    )
    if not isinstance(by_engine, dict):
        return None
    same_engine = (name for name in by_engine if engine_name(name) == engine_name(engine))
    measured = engine if engine in by_engine else next(same_engine, None)
    metrics = by_engine.get(measured)
    if not isinstance(metrics, dict):
        return None
    return {"engine": measured} | {
        name: metrics[name] for name in PARITY_METRICS if _is_number(metrics.get(name))
    }


def _is_number(value: object) -> bool:
    """Whether JSON and a web page can represent the value: no bool, no NaN, no infinity, no huge int."""
    return isinstance(value, int | float) and type(value) is not bool and abs(value) < 1e300
