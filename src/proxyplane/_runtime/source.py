"""Where a flight gets its object from, and what its waiters are told when it does not."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Hashable
from typing import Any, NamedTuple, Protocol

from proxyplane.exceptions import ProxyResolveError


class Ahead(NamedTuple):
    """An object, fetched for a proxy that looks, when it is used, whether this is the latest.

    Attributes:
        generation: Tells it from others that its key may hold.
        obj: The object.
    """

    generation: str
    obj: Any


class Source(Protocol):
    """Where a flight gets its object from."""

    @property
    def flight_key(self) -> Hashable | None:
        """What is equal where one fetch serves all; None where each proxy has its own."""
        ...

    def cached(self) -> Any:
        """The object, if it is at hand; else MISSING."""
        ...

    @property
    def works_here(self) -> bool:
        """Whether `work` can be called in the thread that asks, with no need of a loop."""
        ...

    def work(self) -> Any:
        """Fetches and decodes in this thread; may block."""
        ...

    @property
    def works_anywhere(self) -> bool:
        """Whether there is nothing but `work`: no `fetch`, so a loop calls it on a thread."""
        ...

    async def fetch(self) -> Any:
        """Fetches, on the I/O loop; what it returns goes to `decode`."""
        ...

    def decode(self, fetched: Any) -> Any:
        """Makes the object, in a thread that may be stalled."""
        ...

    def decoding_stalls(self, fetched: Any) -> bool:
        """Whether decoding takes too long for the thread of a running loop."""
        ...

    @property
    def claims(self) -> bool:
        """Whether fetching takes the object away from everybody else, so that it must arrive."""
        ...


def as_raised(error: BaseException, source: Source) -> BaseException:
    """What to raise for an error of `source`, to one of those who wait for it."""
    if isinstance(error, ProxyResolveError):
        # A copy for each waiter: a shared exception would collect everybody's traceback.
        again = copy.copy(error)
        again.__cause__ = error.__cause__
        return again
    if isinstance(error, (Exception, asyncio.CancelledError)):
        wrapped = ProxyResolveError(
            f"could not resolve {source}: {type(error).__name__}: {error}", cause=error
        )
        wrapped.__cause__ = error
        return wrapped
    return error


class _Decoding(threading.local):
    """How many stored objects are being decoded in this thread, one inside another."""

    depth = 0


decoding = _Decoding()
