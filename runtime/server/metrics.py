"""What Prometheus reads at /metrics."""

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
from runtime.server.inference_queue import InferenceQueue, RequestTiming
from runtime.server.live_view import LiveView

# Seconds. From what a desktop takes for a photo to what a Raspberry Pi takes for a queue of them.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counts what is answered; what can be looked up is looked up when it is asked for."""

    def __init__(self, service: InferenceQueue, view: LiveView | None) -> None:
        self._service, self._view = service, view
        # When each figure began would be twice the lines, and nobody asks.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "vgg_edge_requests", "Requests answered", ["path", "status"], registry=registry
        )
        steps = {
            name: Histogram(f"vgg_edge_{name}_seconds", text, buckets=BUCKETS, registry=registry)
            for name, text in (
                ("photo", "A photo's time from the head of its request to its answer"),
                ("decode", "A photo's time in the decoder"),
                ("infer", "A photo's time in the engine"),
            )
        }
        self._photo, self._decode, self._infer = steps.values()
        in_flight = Gauge("vgg_edge_in_flight", "Photos received, waiting or answered now", registry=registry)
        in_flight.set_function(lambda: service.waiting)
        held = Gauge("vgg_edge_held_bytes", "Bytes of photos in memory", registry=registry)
        held.set_function(lambda: service.held)
        self._model = Gauge(
            "vgg_edge_model_info",
            "The model in use",
            ["name", "created", "sha256", "precision", "engine"],
            registry=registry,
        )
        if view is not None:
            self._watch(view)
        service.on_answer = self.answered

    def _watch(self, view: LiveView) -> None:
        up = Gauge("vgg_edge_camera_up", "Whether the camera gives frames", registry=self.registry)
        up.set_function(lambda: not view.problem)
        fps = Gauge("vgg_edge_camera_fps", "Frames answered a second", registry=self.registry)
        fps.set_function(lambda: view.sight.fps if view.sight and not view.problem else 0)
        age = Gauge(
            "vgg_edge_camera_age_seconds",
            "From a frame's taking to its answer, at the newest frame",
            registry=self.registry,
        )
        age.set_function(lambda: view.sight.age_ms / 1000 if view.sight else float("nan"))

    def answered(self, times: RequestTiming) -> None:
        self._photo.observe(times.total)
        self._decode.observe(times.decode)
        self._infer.observe(times.infer)

    def count(self, path: str, status: int) -> None:
        self._requests.labels(path, status).inc()

    def text(self) -> bytes:
        classifier = self._service.live.now()
        model = classifier.model
        contract = model.contract
        self._model.clear()
        facts = (contract.name, contract.created, model.sha256, model.precision, classifier.session.engine)
        self._model.labels(*map(printable, facts)).set(1)  # UTF-8 knows no half of a surrogate pair
        return generate_latest(self.registry)
