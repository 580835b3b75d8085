"""Several calls at once, and calls that must not stop half way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

# How long a cancelled caller waits for what goes on without it.
PATIENCE_SECONDS = 5.0

# A loop holds its tasks weakly only.
_going_on: set[asyncio.Task[Any]] = set()


async def all_or_raise(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs calls at once; the first error cancels the others, and is raised when they ended."""
    if len(calls) == 1:
        return [await calls[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        # Callers handle the errors of connectors, one at a time.
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
    return [task.result() for task in tasks]


async def to_the_end(call: Coroutine[Any, Any, T]) -> T:
    """Runs a call that goes on when its caller is cancelled.

    The caller then waits for it before it ends itself, but not for longer than
    `PATIENCE_SECONDS`, nor when it is cancelled once more.
    """
    task = asyncio.ensure_future(call)
    _going_on.add(task)
    task.add_done_callback(_ended)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            await asyncio.wait([task], timeout=PATIENCE_SECONDS)
        raise


def _ended(task: asyncio.Task[Any]) -> None:
    _going_on.discard(task)
    if not task.cancelled():
        task.exception()  # taken, so that asyncio does not log it where nobody waits any more
