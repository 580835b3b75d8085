"""Threads that wait for each other's objects: the last to join would close the circle.

A blocked thread waits for a flight; a flight that is being worked on waits for its worker, which
may be blocked in turn. Followed far enough, these edges end, or lead back to who is about to wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from proxyplane._runtime.source import Source
from proxyplane.exceptions import ProxyResolveCycleError


class Awaited(Protocol):
    """What the search looks at of a flight."""

    source: Source
    worker: int | None  # None also when there is nothing to wait for any more


def refuse_cycle(flight: Awaited, me: int, waits: Mapping[int, Awaited]) -> None:
    """Raises if a thread on whose work a flight depends is the calling one.

    Args:
        flight: What the caller is about to wait for.
        me: The calling thread.
        waits: Which flight each blocked thread waits for. Nobody may change it meanwhile.

    Raises:
        ProxyResolveCycleError: The flight needs its own result.
    """
    awaited: Awaited | None = flight
    seen: set[Awaited] = set()
    while awaited is not None and awaited.worker is not None and awaited not in seen:
        if awaited.worker == me:
            raise ProxyResolveCycleError(
                f"resolving {flight.source} needs its own result",
                hint="an object's decoder or factory touches a proxy of that same object",
            )
        seen.add(awaited)
        awaited = waits.get(awaited.worker)
