"""The memory behind local connectors: objects, keys whose object is still to come, and leases.

Putting and getting are atomic calls of a dict. Leases and swaps take more than one, and a lock: to
extend a lease and to take away what has ended exclude each other, as do to replace an object and to
evict it. In a forked child, where it may be
held for ever, nothing comes here: the objects are those of another process.

Leases are counted by the monotonic clock, which no change of the time of day touches.
"""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from proxyplane.connectors._sweeping import sweep_in_background
from proxyplane.connectors._waiters import Waiters


class Lease:
    """When something ends; None if never. An object has that of its registration, if it had one."""

    __slots__ = ("deadline",)

    def __init__(self, ttl: float | None = None) -> None:
        self.set(ttl)

    def set(self, ttl: float | None) -> None:
        """Lets it end so many seconds from now."""
        self.deadline = None if ttl is None else time.monotonic() + ttl

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.deadline is not None and self.deadline <= time.monotonic()


class Entry:
    """One object.

    Attributes:
        writer: Through which connector it was put.
        body: Its bytes.
        lease: Its lease; None if it never had one.
    """

    __slots__ = ("body", "lease", "writer")

    def __init__(self, writer: object, body: memoryview, lease: Lease | None = None) -> None:
        self.writer = writer
        self.body = body
        self.lease = lease

    @property
    def ended(self) -> bool:
        """Whether it has a lease that ended."""
        return self.lease is not None and self.lease.ended


class Pending(NamedTuple):
    """The registration of a key whose object is still to come."""

    writer: object
    lease: Lease


class Medium:
    """The objects; lives for as long as an open connector of this process refers to it.

    Args:
        token: Tells it from others.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.entries: dict[str, Entry] = {}
        self.pending: dict[str, Pending] = {}
        self.waiters = Waiters()
        self._leased: dict[str, None] = {}
        self._lock = threading.RLock()
        self._sweeps = False

    def find(self, key: str) -> Entry | None:
        """The object of a key, unless its lease has ended."""
        entry = self.entries.get(key)
        return None if entry is None or entry.ended else entry

    def add(self, key: str, entry: Entry) -> bool:
        """Adds an object; False if the key is taken."""
        if _leased(entry):
            self.note(key)
        while True:
            there = self.entries.setdefault(key, entry)
            if there is entry:
                return True
            if not there.ended:
                return False
            self._take(key, there)

    def register(self, key: str, writer: object, ttl: float | None) -> None:
        """Registers a key whose object is still to come."""
        if ttl is not None:
            self.note(key)
        self.pending[key] = Pending(writer, Lease(ttl))

    def registered(self, key: str) -> Pending | None:
        """The registration of a key, unless its lease has ended."""
        pending = self.pending.get(key)
        return None if pending is None or pending.lease.ended else pending

    def settle(self, key: str) -> bool:
        """Ends the registration of a key and wakes who waits for it; False if there was none.

        After the object is stored: whoever looks finds one or the other.
        """
        if self.pending.pop(key, None) is None:
            return False
        self.waiters.wake((key,))
        return True

    def evict(self, key: str) -> bool:
        """Removes an object and the registration of its key."""
        self.settle(key)
        with self._lock:  # not in the middle of a swap
            entry = self.entries.pop(key, None)
        return entry is not None and not entry.ended

    def swap(self, key: str, entry: Entry | None) -> Entry | None:
        """Has a key hold an object, or nothing, and returns what it held."""
        if _leased(entry):
            self.note(key)
        with self._lock:
            was = self.entries.pop(key, None) if entry is None else self.entries.get(key)
            if entry is not None:
                if was is None:  # somebody may add one without the lock
                    was = self.entries.setdefault(key, entry)
                self.entries[key] = entry
        return None if was is None or was is entry or was.ended else was

    def extend(self, key: str, ttl: float | None) -> bool:
        """Gives what a key holds a new lease; False if it holds nothing."""
        with self._lock:
            # The registration first: its object has its lease.
            pending, entry = self.registered(key), self.find(key)
            if entry is None:
                if pending is None:
                    return False
                pending.lease.set(ttl)
            elif entry.lease is not None:
                entry.lease.set(ttl)
            else:
                entry.lease = Lease(ttl)
        if ttl is not None:
            self.note(key)
        return True

    def note(self, key: str) -> None:
        """Has a key looked at when the memory is swept."""
        self._leased[key] = None
        if not self._sweeps:
            self._sweeps = True
            sweep_in_background(self)

    # -- what the background needs ---------------------------------------------------------------

    @property
    def place(self) -> object:
        """What tells it from other media."""
        return self.token

    @property
    def idle(self) -> bool:
        """Whether nothing has a lease."""
        return not self._leased

    def sweep_some(self, seconds: float) -> bool:
        """Takes away what has ended; see `_sweeping.Medium`."""
        for key in list(self._leased):
            entry, pending = self.entries.get(key), self.pending.get(key)
            if entry is not None and entry.ended:
                self._take(key, entry)
            elif pending is not None and pending.lease.ended:
                self._take_registration(key, pending)
            elif not _leased(entry) and not _leased(pending):
                self._leased.pop(key, None)
                # It may have been put, or given a lease, between the looks.
                if _leased(self.entries.get(key)) or _leased(self.pending.get(key)):
                    self._leased[key] = None
        return False

    def _take(self, key: str, entry: Entry) -> None:
        with self._lock:
            if self.entries.get(key) is not entry or not entry.ended:
                return
            popped = self.entries.pop(key, None)
            if popped is not None and popped is not entry:
                # It was evicted, and another one put, between these lines.
                self.entries.setdefault(key, popped)

    def _take_registration(self, key: str, pending: Pending) -> None:
        with self._lock:
            if self.pending.get(key) is pending and pending.lease.ended:
                self.settle(key)


def _leased(one: Entry | Pending | None) -> bool:
    return one is not None and one.lease is not None and one.lease.deadline is not None
