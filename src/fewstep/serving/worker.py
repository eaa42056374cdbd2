"""One thread that draws, a bounded queue before it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Worker:
    """Runs calls one after the other in a thread of its own.

    Args:
        most: calls that may run or wait at one time.
    """

    def __init__(self, most: int) -> None:
        self._free = threading.BoundedSemaphore(most)
        self._thread = ThreadPoolExecutor(1, "draw")

    def submit(self, work: Callable[[], Any]) -> Future[Any] | None:
        """The call's future, which may be cancelled while it waits; None where the queue is full."""
        if not self._free.acquire(blocking=False):
            return None
        try:
            future = self._thread.submit(work)
        except RuntimeError:  # the server is closing
            self._free.release()
            return None
        future.add_done_callback(lambda _: self._free.release())
        return future

    def close(self) -> None:
        """Let the call that runs end, drop those that wait."""
        self._thread.shutdown(cancel_futures=True)
