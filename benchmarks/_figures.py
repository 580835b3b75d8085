"""How figures are taken that more than one experiment has."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks._media import BASE, Medium
from benchmarks._report import Point, Report

Found = dict[str, list[float]]
"""The figure of each round, for each way."""

LARGE = 100_000_000
"""Bytes of a large array."""

_numbers = itertools.count(1)


def fresh_bytes(size: int) -> bytes:
    """An object with contents of its own."""
    return b"%016d" % next(_numbers) * (size // 16)


def fresh_array(size: int) -> Any:
    """An array of integers, all of one value that no other has."""
    return np.full(size // 8, next(_numbers))


def as_array(found: Any) -> Any:
    """What a way without a serialiser found, as the array it was."""
    return found if isinstance(found, np.ndarray) else np.frombuffer(found, np.int64)


def large(report: Report) -> int:
    """The size of a large array, in bytes."""
    return LARGE // 50 if report.settings.quick else LARGE


def size_name(size: float) -> str:
    """A size as people say it."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size:g} B"


def add_ways(
    report: Report,
    medium: Medium,
    limit: str,
    experiment: str,
    what: str,
    unit: str,
    found: Found,
    *,
    compared: bool = True,
    plot: tuple[str, str] | None = None,
    x: float | None = None,
) -> None:
    """Adds a row for each way, beside the reference's or by itself.

    `limit` names the limit of the medium that holds for ours; `plot` the picture and its panel that
    the figures are in, `x` where on its axis.
    """
    for name, values in found.items():
        by = found.get(BASE) if compared and name != BASE else None
        asked = medium.limit(limit, name) if by or not compared else None
        report.add(
            experiment,
            f"{what}, {name}",
            unit,
            values,
            by=by,
            base=BASE if by else "",
            target=None if asked is None else ("<=", asked),
            point=Point(*plot, name, x) if plot else None,
        )


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
