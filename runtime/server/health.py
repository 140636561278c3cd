"""Health checks for /healthz and systemd's watchdog: the service is healthy while it answers photos."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from runtime.common.errors import EngineError
from runtime.common.terminal import print_error
from runtime.server.inference_queue import InferenceQueue
from runtime.server.live_view import LiveView

CHECK_INTERVAL = 5.0  # seconds
UNHEALTHY_AFTER = 30.0  # seconds without a passed check


@dataclass
class HealthMonitor:
    """Runs the checks, and calls `on_pass` after each passed check. `live_view` is None without a camera."""

    queue: InferenceQueue
    live_view: LiveView | None = None
    interval: float = CHECK_INTERVAL  # seconds
    on_pass: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self._last_pass = time.monotonic()

    async def run(self) -> None:
        """Checks every `interval` seconds, without end.

        The queue passes if it answered a photo since the last check; an idle queue gets a gray picture. The
        checks continue after a failed check, since another model may replace the model that fails.
        """
        self._answered, reason = -1, ""
        while True:
            previous, reason = reason, await self._engine_error()
            if reason and reason != previous:
                print_error(f"health check failed: {reason}")
            if not reason and self._is_camera_running():
                self._last_pass = time.monotonic()
                self.on_pass()
            await asyncio.sleep(self.interval)

    async def _engine_error(self) -> str:
        """Why the engine cannot answer photos; "" if it can."""
        try:
            if self._answered == self.queue.answered:
                await self.queue.classify_gray()
        except Exception as error:  # whatever fails, the next check must follow
            return str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        self._answered = self.queue.answered
        return ""

    def is_healthy(self) -> bool:
        """Whether a check passed in the last UNHEALTHY_AFTER seconds, and the camera's thread runs."""
        return time.monotonic() - self._last_pass < UNHEALTHY_AFTER and self._is_camera_running()

    def _is_camera_running(self) -> bool:
        return self.live_view is None or self.live_view.is_alive()
