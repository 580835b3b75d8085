"""When objects of an endpoint end: their leases, and one timer for all of them.

A lease is counted by a clock that nobody sets, and that goes on while the machine sleeps. What
persists has its lease written down with it by two clocks: this one, which counts as long as the
machine has not been booted again, so that a restart of the endpoint changes nothing whatever the
time of day does meanwhile; and the time of day, which is all that there is after a boot. A lease
never comes back longer than it was given.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import struct
import time
from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["Lease", "Leases", "NO_LEASE", "RECORD", "pack", "unpack"]

RECORD: Final = struct.Struct(">16sddd")
"""A lease that is written down: the boot, when it ends by that clock, and by the time of day, and
how long it was."""
NO_LEASE: Final = bytes(RECORD.size)

_AT_ONCE: Final = 1000  # that are looked at before the loop has its turn
_LONGEST_SLEEP: Final = 60.0  # a loop's timer stands still while the machine sleeps
_FEW: Final = 1000

if hasattr(time, "CLOCK_BOOTTIME"):

    def now() -> float:
        """Seconds by the clock of leases."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    now = time.monotonic


@functools.cache
def _this_boot() -> bytes:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))
    except (OSError, ValueError):
        return b""  # of no record


class Lease:
    """When something ends; an object has that of its registration, if it had one.

    Attributes:
        deadline: By the clock of leases; None if it does not end.
        length: Seconds that it was given.
        noted: For when the timer knows of it; None if it does not.
        over: Whether that for which it was is gone.
    """

    __slots__ = ("deadline", "length", "noted", "over")

    def __init__(self, ttl: float | None = None) -> None:
        self.noted: float | None = None
        self.over = False
        self.set(ttl)

    def set(self, ttl: float | None) -> None:
        """Lets it end so many seconds from now."""
        self.length = ttl or 0.0
        self.deadline = None if ttl is None else now() + ttl

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.deadline is not None and self.deadline <= now()


def pack(lease: Lease | None) -> bytes:
    """What is written down of a lease."""
    if lease is None or lease.deadline is None:
        return NO_LEASE
    by_day = time.time() + lease.deadline - now()
    return RECORD.pack(_this_boot(), lease.deadline, by_day, lease.length)


def unpack(raw: bytes) -> Lease | None:
    """The lease that `pack` wrote, perhaps long ago; None for none."""
    boot, deadline, by_day, length = RECORD.unpack(raw)
    if not 0 < length < float("inf"):
        return None
    same = boot == _this_boot()
    left = deadline - now() if same else by_day - time.time()
    lease = Lease(min(left, length) if left > 0 else 0)
    lease.length = length
    return lease


class Leases:
    """The leases of one endpoint, of which the one that ends first has the timer.

    Args:
        on_end: Called with the keys, and the leases, that have ended; it looks whether they still
            are what the keys have.
    """

    def __init__(self, on_end: Callable[[Sequence[tuple[str, Lease]]], object]) -> None:
        self._on_end = on_end
        self._heap: list[tuple[float, int, str, Lease]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._for = 0.0
        self._stale = 0  # of the heap: their lease is over, or has another place in it
        self._closed = False

    def __len__(self) -> int:
        """How many there are."""
        return len(self._heap) - self._stale

    def note(self, key: str, lease: Lease | None) -> None:
        """Sees to it that a lease ends, now that it is that of this key, or has changed."""
        if lease is None or lease.deadline is None or lease.over:
            return
        # One that was made longer is looked at when it would have ended, and put back then.
        if lease.noted is not None and lease.noted <= lease.deadline:
            return
        self._stale += lease.noted is not None
        lease.noted = lease.deadline
        heapq.heappush(self._heap, (lease.deadline, next(self._numbers), key, lease))
        self._tidy()
        self._set_timer()

    def drop(self, lease: Lease | None) -> None:
        """Forgets a lease, for good."""
        if lease is None or lease.over:
            return
        lease.over = True
        self._stale += lease.noted is not None
        self._tidy()

    def _tidy(self) -> None:
        if self._stale > _FEW and 2 * self._stale > len(self._heap):
            self._heap = [one for one in self._heap if not _is_stale(one)]
            heapq.heapify(self._heap)
            self._stale = 0

    def close(self) -> None:
        """Ends none any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        if self._closed or not self._heap:
            return
        first = self._heap[0][0]
        if self._timer is not None:
            if self._for <= first:
                return
            self._timer.cancel()
        self._for = first
        wait = min(max(0.0, first - now()), _LONGEST_SLEEP)
        self._timer = asyncio.get_running_loop().call_later(wait, self._look)

    def _look(self) -> None:
        self._timer = None
        ended: list[tuple[str, Lease]] = []
        until = now()
        for _ in range(_AT_ONCE):
            if not self._heap or self._heap[0][0] > until:
                break
            one = heapq.heappop(self._heap)
            if _is_stale(one):
                self._stale -= 1
                continue
            _, _, key, lease = one
            lease.noted = None
            if lease.deadline is not None and lease.deadline <= until:
                ended.append((key, lease))
            else:
                self.note(key, lease)
        if ended:
            self._on_end(ended)
        self._set_timer()


def _is_stale(one: tuple[float, int, str, Lease]) -> bool:
    at, _, _, lease = one
    return lease.over or at != lease.noted
