"""Which proxies the background resolves next, and how many at a time."""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from proxyplane._runtime import flights
from proxyplane._runtime.io_thread import io_thread
from proxyplane._runtime.source import Ahead
from proxyplane.exceptions import IOThreadError

# What an object of unknown size counts for, in bytes.
UNKNOWN_SIZE = 1 << 20
# Interests in the queue, at least, before it is looked through for those that are over.
PURGE_AT = 1000

Call = Callable[[], object]


class Interest(weakref.ref[Any]):
    """That a proxy is to be resolved in the background; does not keep it alive.

    Attributes:
        source: Where its object comes from; None when there is nothing to start any more.
        flying: Takes back what was started; None when nothing is.
        asked: Whether somebody asked for it, so that passing it on changes nothing.
    """

    __slots__ = ("asked", "flying", "source")

    source: Any
    flying: Call | None
    asked: bool

    def is_wanted(self) -> bool:
        """Whether there is something to start."""
        return self.source is not None

    def deliver(self, target: Any) -> Any:
        """Resolves the proxy, unless it looks once more when it is used.

        Returns:
            What may be dropped only where that does no harm.
        """
        self.source = self.flying = None
        proxy = self()
        if proxy is None:
            return None
        if type(target) is not Ahead:
            proxy.__proxy_accept__(target)
            return proxy
        return proxy, proxy.__proxy_factory__.take_ahead(target)

    def leave(self) -> None:
        """Takes back what was started."""
        flying, self.flying = self.flying, None
        if flying is not None:
            with contextlib.suppress(RuntimeError):  # the I/O loop is closed
                flying()


class Window:
    """Starts flights in order, as many at a time as it has places; for one thread only.

    Args:
        max_flights: How many are in the air at a time.
        max_bytes: How many bytes these may have together. A larger object goes alone.
        tell: Has that thread call something; may be called anywhere.

    Attributes:
        queue: What waits for a place.
        flights: How many places are taken.
        nbytes: How many bytes.
    """

    def __init__(self, max_flights: int, max_bytes: int, tell: Callable[[Call], object]) -> None:
        self._max_flights = max_flights
        self._max_bytes = max_bytes
        self._tell = tell
        self._purge_at = PURGE_AT
        self.queue: deque[Interest] = deque()
        self.flights = self.nbytes = 0

    def add(self, interest: Interest) -> None:
        """Puts an interest behind those that are there."""
        self.queue.append(interest)
        if len(self.queue) > self._purge_at:
            self.queue = deque(filter(Interest.is_wanted, self.queue))
            self._purge_at = 2 * len(self.queue) + PURGE_AT

    def admit(self) -> None:
        """Starts what there is room for."""
        while self.queue:
            interest = self.queue[0]
            source = interest.source
            size = source.size or UNKNOWN_SIZE if source is not None else 0
            full = self.flights >= self._max_flights or self.nbytes + size > self._max_bytes
            if source is not None and full and self.flights:
                return
            self.queue.popleft()
            if source is not None and not _exiting():
                self._start(interest, source, size)

    def _start(self, interest: Interest, source: Any, size: int) -> None:
        key = source.flight_key
        # Set before `is_wanted` is asked, while who ends an interest clears its source before he
        # looks at this: so one of the two sees the other.
        interest.flying = partial(flights.leave_behind, key, interest.deliver)
        ended = partial(self._tell, partial(self._release, size))
        new = flights.join_behind(key, source, interest.is_wanted, interest.deliver, ended)
        if new:
            self.flights += 1
            self.nbytes += size
        elif new is None:
            interest.flying = None

    def _release(self, size: int) -> None:
        self.flights -= 1
        self.nbytes -= size


def _exiting() -> bool:
    try:
        return io_thread().ending
    except IOThreadError:
        return True
