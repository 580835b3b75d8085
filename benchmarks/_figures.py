"""How figures are taken that more than one experiment has."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import statistics
import time
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any

Found = dict[str, list[float]]
"""The figure of each round, for each way."""


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keeps the garbage collector from choosing whose time it takes."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def keep(times: dict[str, list[tuple[float, ...]]], into: Sequence[Found], scale: float) -> None:
    """Adds a round to the figures: the median of each column."""
    for name, rows in times.items():
        for found, column in zip(into, zip(*rows, strict=True), strict=True):
            found.setdefault(name, []).append(statistics.median(column) * scale)


async def longest_stall(call: Awaitable[Any]) -> tuple[float, Any]:
    """The longest time, in seconds, between two turns of the loop; and what `call` gave."""
    worst, last = 0.0, time.perf_counter()

    async def tick() -> None:
        nonlocal worst, last
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            worst, last = max(worst, now - last), now

    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(0)
    result = await call
    await asyncio.sleep(0)
    ticking.cancel()
    return worst, result


def memory(field: str) -> int:
    """The resident memory of this process in bytes, now or at its peak since it was asked last."""
    gc.collect()
    if field == "VmRSS":
        with open("/proc/self/clear_refs", "w", encoding="ascii") as peak:
            peak.write("5")  # the peak begins anew
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
