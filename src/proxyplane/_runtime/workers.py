"""Worker threads for what would stall an event loop: big pickles, big file bodies, user code."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    import anyio

T = TypeVar("T")
P = ParamSpec("P")

# Our own limit per loop, so that neither the user's calls of anyio.to_thread nor their default
# executor (six threads on a two-core machine) can starve ours, nor ours theirs.
WORKERS_PER_LOOP = 32
_limiters: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, anyio.CapacityLimiter] = (
    weakref.WeakKeyDictionary()
)


async def run_in_worker(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls ``func`` on a worker thread and returns what it returns.

    A cancelled caller waits for the call to end, so that nothing is left half done behind it.
    """
    # Imported on first use: anyio takes half as long to import as asyncio.
    from anyio import CapacityLimiter, to_thread

    loop = asyncio.get_running_loop()
    limiter = _limiters.get(loop)
    if limiter is None:
        limiter = _limiters[loop] = CapacityLimiter(WORKERS_PER_LOOP)
    return await to_thread.run_sync(lambda: func(*args, **kwargs), limiter=limiter)
