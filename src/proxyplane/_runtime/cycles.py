"""Flights that wait for each other's objects: the last to join would close the circle.

A blocked thread waits for a flight. A flight that is being worked on waits for its worker, which
may be blocked in turn, and any flight waits for what is awaited inside of its fetch or its work: by
an `acall` on the I/O loop, by a factory that runs a loop of its own. Followed far enough, these
edges end, or lead back to who is about to wait.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol

from proxyplane._runtime.source import Source
from proxyplane.exceptions import ProxyResolveCycleError


class Awaited(Protocol):
    """What the search looks at of a flight.

    Attributes:
        source: What it resolves.
        worker: The thread that is at it now; None also when there is nothing to wait for any more.
        awaits: What it waits for itself, by whatever tells one wait from another.
    """

    source: Source
    worker: int | None

    @property
    def awaits(self) -> Mapping[object, Awaited]: ...
    @property
    def is_over(self) -> bool: ...


# The flight in whose fetch or work the running code is. Weakly, because a task that was begun there
# may outlive it, as the readers of connections do.
inside: ContextVar[weakref.ref[Awaited] | None] = ContextVar("inside", default=None)


def refuse_cycle(
    flight: Awaited, caller: Awaited | None, me: int | None, waits: Mapping[int, Awaited]
) -> None:
    """Raises if a flight cannot end before the caller goes on.

    Args:
        flight: What the caller is about to wait for.
        caller: The flight in which the caller is, if it is in one.
        me: The calling thread if it is about to block; else None.
        waits: Which flight each blocked thread waits for. Nobody may add to it, or to what a flight
            awaits, meanwhile.

    Raises:
        ProxyResolveCycleError: The flight needs its own result.
    """
    seen: set[Awaited] = set()
    ahead: list[Awaited] = [flight]
    while ahead:
        awaited = ahead.pop()
        if awaited.is_over or awaited in seen:
            continue
        seen.add(awaited)
        worker = awaited.worker
        if awaited is caller or (worker is not None and worker == me):
            raise ProxyResolveCycleError(
                f"resolving {flight.source} needs its own result",
                hint="an object's decoder or factory touches or awaits a proxy of that same object",
            )
        ahead += list(awaited.awaits.values())
        if worker is not None and worker in waits:
            ahead.append(waits[worker])
