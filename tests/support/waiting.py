"""Waits on loops and threads of their own, and what they leave."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

LONG = 40.0
"""Seconds that no wait takes, unless it was not woken."""

SHORT = 1.0
"""Seconds after which a wait that is not to be woken is given up."""


def rounds(ordinary: int, long: int) -> int:
    """How often to try: `ordinary`, or `long` when PROXYPLANE_SOAK is set."""
    return long if os.environ.get("PROXYPLANE_SOAK") else ordinary


def on_thread(make: Callable[[], Coroutine[Any, Any, Any]]) -> Future[Any]:
    """Runs a coroutine on a new loop of a new thread."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(asyncio.run(make()))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


async def until(condition: Callable[[], object]) -> None:
    """Returns when the condition holds; the timeout of the test ends it otherwise."""
    while not condition():
        await asyncio.sleep(0.002)


def nobody_waits(waiters) -> bool:
    """Whether no table, and no row of one, is left."""
    return not waiters._tables
