"""One thread for long work, such as fitting, with one job at a time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from runtime.server.errors import RequestRejected

Result = TypeVar("Result")


class ExclusiveWorker:
    """Runs one job at a time, so that requests whose clients have left do not pile up.

    `busy` is the reason that further requests get meanwhile, such as "the service is adapting already".
    """

    def __init__(self, name: str, busy: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)
        self._busy, self._is_busy = busy, False

    async def run(self, work: Callable[[], Result]) -> Result:
        """The result of a job in the thread. Raises RequestRejected (503), and the job's exceptions.

        The job ends even if the request is cancelled.
        """
        if self._is_busy:
            raise RequestRejected(503, f"{self._busy}: retry in 5 s", retry_after=5)
        self._is_busy = True
        job = asyncio.get_running_loop().run_in_executor(self._pool, work)

        def finish(job: "asyncio.Future[Result]") -> None:
            self._is_busy = False
            if not job.cancelled():
                job.exception()  # asyncio reports an exception that nobody retrieves

        job.add_done_callback(finish)
        return await asyncio.shield(job)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
