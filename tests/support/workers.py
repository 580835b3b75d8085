"""Cancels a call after a given number of steps, and waits for what it left on a worker thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine

from proxyplane.connectors import _inline


class Workers:
    """Counts the calls that reach a worker thread and those that ended there."""

    def __init__(self, monkeypatch) -> None:
        self.started = self.ended = 0
        self._lock = threading.Lock()
        real = _inline.run_in_worker

        async def counting(func):
            def call():
                with self._lock:
                    self.started += 1
                try:
                    return func()
                finally:
                    with self._lock:
                        self.ended += 1

            return await real(call)

        monkeypatch.setattr(_inline, "run_in_worker", counting)

    async def settle(self) -> None:
        """Returns when no worker is at it, and none was about to begin."""
        quiet = 0
        while quiet < 5:
            await asyncio.sleep(0.002)
            quiet = quiet + 1 if self.started == self.ended else 0


async def cancel_after(steps: int, call: Coroutine[object, object, object]) -> bool:
    """Cancels the call after it was resumed `steps` times; True if that came in time."""
    task = asyncio.ensure_future(call)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()
