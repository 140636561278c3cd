"""Prometheus metrics for /metrics."""

from collections import Counter as Counts
from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from runtime.common.text import printable
from runtime.inference.prediction import UNKNOWN, Prediction
from runtime.server.inference_queue import InferenceQueue, RequestTiming
from runtime.server.live_view import LiveView

# Seconds: from one photo on a desktop to a full queue on a Raspberry Pi.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counts requests and times; gauges read the queue and the camera when Prometheus asks."""

    def __init__(self, queue: InferenceQueue, live_view: LiveView | None) -> None:
        self._queue = queue
        disable_created_metrics()  # type: ignore[no-untyped-call] # halves the number of lines
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "vgg_edge_requests", "Requests answered", ["path", "status"], registry=registry
        )
        self._answers = Counter(
            "vgg_edge_answers",
            "Answers to photos: a class, also a learned one, or unknown",
            ["label"],
            registry=registry,
        )
        self._total, self._decode, self._infer = (
            Histogram(f"vgg_edge_{name}_seconds", help_text, buckets=BUCKETS, registry=registry)
            for name, help_text in (
                ("photo", "Time of a photo from the head of its request to its answer"),
                ("decode", "Time of a photo in the decoder"),
                ("infer", "Time of a photo in the engine"),
            )
        )
        receiving = Gauge("vgg_edge_receiving", "Photos that arrive now", registry=registry)
        receiving.set_function(lambda: queue.receiving)
        in_flight = Gauge(
            "vgg_edge_in_flight", "Photos that are waiting or being classified now", registry=registry
        )
        in_flight.set_function(lambda: queue.in_flight)
        held_bytes = Gauge("vgg_edge_held_bytes", "Bytes of photos in memory", registry=registry)
        held_bytes.set_function(lambda: queue.buffered_bytes)
        self._model = Gauge(
            "vgg_edge_model_info",
            "The model in use",
            ["name", "created", "sha256", "precision", "engine"],
            registry=registry,
        )
        self._learned = Gauge(
            "vgg_edge_learned_photos", "Photos in the learned state in use", ["label"], registry=registry
        )
        self._live_view = live_view
        if live_view is not None:
            _add_camera(registry, live_view)
            self._camera_answer = Gauge(
                "vgg_edge_camera_answer",
                "1 for the camera's answer now, else 0",
                ["label"],
                registry=registry,
            )
        queue.on_answer = self._observe

    def count_request(self, path: str, status: int) -> None:
        self._requests.labels(path, status).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        classifier = self._queue.model.current()
        model = classifier.model
        contract = model.contract
        self._model.clear()
        labels = (contract.name, contract.created, model.sha256, model.precision, classifier.session.engine)
        self._model.labels(*map(printable, labels)).set(1)  # UTF-8 cannot encode lone surrogates
        self._learned.clear()
        for label, count in Counts(classifier.learned.photos.values() if classifier.learned else ()).items():
            self._learned.labels(printable(label)).set(count)
        if self._live_view is not None:
            self._set_camera_answer(classifier.labels, self._live_view)
        return generate_latest(self.registry)

    def _set_camera_answer(self, labels: Sequence[str], view: LiveView) -> None:
        self._camera_answer.clear()
        answer = view.latest.prediction.answer if view.latest and not view.answer_problem else None
        for label in (*labels, UNKNOWN):
            self._camera_answer.labels(printable(label)).set(label == answer)

    def _observe(self, timing: RequestTiming, prediction: Prediction) -> None:
        self._answers.labels(printable(prediction.answer)).inc()
        self._total.observe(timing.total)
        self._decode.observe(timing.decode)
        self._infer.observe(timing.infer)


def _add_camera(registry: CollectorRegistry, view: LiveView) -> None:
    up = Gauge("vgg_edge_camera_up", "1 while the camera delivers frames", registry=registry)
    up.set_function(lambda: not view.problem)
    fps = Gauge("vgg_edge_camera_fps", "Frames classified per second", registry=registry)
    fps.set_function(lambda: view.latest.fps if view.latest and not view.problem else 0)
    age = Gauge(
        "vgg_edge_camera_age_seconds",
        "Time from the capture of the newest frame to its prediction",
        registry=registry,
    )
    age.set_function(lambda: view.latest.age_ms / 1000 if view.latest else float("nan"))
