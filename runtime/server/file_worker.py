"""Threads for short work with files, such as listing a folder of pictures, whose clients take turns."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from runtime.server.errors import RequestRejected
from runtime.server.fair_executor import FairExecutor

MAX_WAITING = 64  # requests of an address: as many as it may have connections

Result = TypeVar("Result")


class FileWorker:
    """Runs work with files in threads, while the event loop answers other requests.

    All that lists or changes a folder of pictures goes here: a list of a thousand takes 10 ms and more, and a
    memory card needs up to a third of a second to store one picture.
    """

    def __init__(self) -> None:
        self._threads = FairExecutor(2, 1, "files")
        self._waiting = Counter[str]()  # requests by address, on the event loop only

    async def run(self, address: str, work: Callable[[], Result]) -> Result:
        """The result of `work`, in a thread. Clients with other addresses take turns.

        Raises RequestRejected (503): a request waits too when its connection is closed, so their number has a
        limit. Also raises the exceptions of `work`.
        """
        if self._waiting[address] >= MAX_WAITING:
            raise RequestRejected(503, "too many requests at once: retry in 1 s", retry_after=1)
        self._waiting[address] += 1
        try:
            return await asyncio.wrap_future(self._threads.submit(address, work))
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]

    def close(self) -> None:
        self._threads.shutdown()
