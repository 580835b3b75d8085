"""Cancels a coroutine at a chosen one of its suspensions."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


class CancelAt:
    """Awaits `coroutine` and cancels the running task as it suspends for the `n`-th time.

    Attributes:
        hit: Whether it suspended that often.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], n: int) -> None:
        self._coroutine = coroutine
        self._n = n
        self.hit = False

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._coroutine.__await__()
        resume, argument = steps.send, None
        seen = 0
        while True:
            try:
                waits_for = resume(argument)
            except StopIteration as stop:
                return stop.value
            seen += 1
            if seen == self._n:
                self.hit = True
                asyncio.current_task().cancel()
            try:
                argument = yield waits_for
                resume = steps.send
            except BaseException as exc:
                resume, argument = steps.throw, exc


async def cancelled_at(coroutine: Coroutine[Any, Any, Any], n: int) -> bool:
    """Runs `coroutine` in a task, cancelled at its `n`-th suspension.

    Returns:
        Whether it came to that; False when the coroutine had ended before.
    """
    stepper = CancelAt(coroutine, n)

    async def run() -> None:
        await stepper

    try:
        await asyncio.ensure_future(run())
    except asyncio.CancelledError:
        assert stepper.hit
    return stepper.hit
