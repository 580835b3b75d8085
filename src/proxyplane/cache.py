"""What a store keeps in memory: the objects used last, bounded by their number and their bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Final

from proxyplane._runtime.fork import on_fork

__all__ = ["MISSING", "LRUCache"]


class _Missing:
    """The type of `MISSING`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""What `LRUCache.get` returns for a key it does not hold, since any object may be held."""


class LRUCache:
    """Keeps the objects that were used last; safe to use from any number of threads.

    An object that is dropped may run any code: its finaliser, which may use this very cache, or
    the closing of a mapped file. So nothing is dropped while the lock is held. The garbage
    collector may still run a finaliser there, in the middle of a change; it can get and drop, and
    what it puts is not kept.

    Args:
        max_items: How many objects it holds at most; 0 disables it.
        max_bytes: How many bytes they may have together; 0 disables it. An object that alone has
            more is not kept.

    Attributes:
        drops: How often a caller had something dropped; see `put`.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.drops = 0
        self._entries: OrderedDict[str, tuple[Any, int, str | None]] = OrderedDict()
        self._nbytes = 0
        self._changing = False
        self._lock = threading.RLock()  # a finaliser may come back in the same thread
        on_fork(self)

    def after_fork_in_child(self) -> None:
        """Replaces the lock; the objects are as good in the child, so they stay."""
        # Another thread may have held the lock in the middle of a change, which leaves the sum
        # out of step with the objects.
        self._lock = threading.RLock()
        self._changing = False
        self._nbytes = sum(entry[1] for entry in self._entries.values())

    @property
    def nbytes(self) -> int:
        """The bytes of all objects in the cache, as told to `put`."""
        return self._nbytes

    def get(self, key: str) -> Any:
        """The object of a key, from now on the one used last; `MISSING` when it is not here."""
        if not self._entries:
            return MISSING
        with self._lock:
            try:
                self._entries.move_to_end(key)
                return self._entries[key][0]
            except KeyError:
                return MISSING

    def get_marked(self, key: str) -> tuple[Any, str | None]:
        """As `get`, and the mark that the object was put with."""
        with self._lock:
            try:
                self._entries.move_to_end(key)
                entry = self._entries[key]
            except KeyError:
                return MISSING, None
            return entry[0], entry[2]

    def put(
        self,
        key: str,
        obj: Any,
        size: int,
        *,
        since: int | None = None,
        mark: str | None = None,
    ) -> None:
        """Keeps an object in place of what the key held, and drops those used longest ago.

        Args:
            key: Its key.
            obj: Any object, `None` included.
            size: Its bytes.
            since: What `drops` was before the object was read. If it is more by now, the object
                may have been evicted in the meantime, and is not kept.
            mark: Tells this object from others that the key may hold.
        """
        keep = self.max_items > 0 and self.max_bytes > 0 and size <= self.max_bytes
        if not keep and not self._entries:
            return
        entry = (obj, size, mark)
        dropped: list[tuple[Any, int, str | None]] = []
        with self._lock:
            if self._changing or (since is not None and since != self.drops):
                return
            self._changing = True
            try:
                self._remove(key, dropped)
                if keep:
                    self._entries[key] = entry
                    self._nbytes += size
                    while len(self._entries) > self.max_items or self._nbytes > self.max_bytes:
                        self._remove(None, dropped)
            finally:
                self._changing = False
        dropped.clear()

    def _remove(self, key: str | None, dropped: list[tuple[Any, int, str | None]]) -> None:
        # One call takes an entry out, and the sum changes only by what went in or out, never to
        # a fixed value: so both are right whatever a finaliser does between any two lines.
        try:
            entry = self._entries.popitem(last=False)[1] if key is None else self._entries.pop(key)
        except KeyError:
            return
        self._nbytes -= entry[1]
        dropped.append(entry)

    def pop(self, key: str) -> Any:
        """Drops a key and returns its object; `MISSING` when it is not here."""
        dropped: list[tuple[Any, int, str | None]] = []
        with self._lock:
            self.drops += 1
            self._remove(key, dropped)
        return dropped[0][0] if dropped else MISSING

    def clear(self) -> None:
        """Drops everything."""
        with self._lock:
            self.drops += 1
            dropped, self._entries = self._entries, OrderedDict()
            self._nbytes -= sum(entry[1] for entry in dropped.values())
        dropped.clear()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return (
            f"<LRUCache {len(self)} of {self.max_items} objects, "
            f"{self._nbytes} of {self.max_bytes} bytes>"
        )
