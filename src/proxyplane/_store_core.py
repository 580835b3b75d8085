"""A store's operations, from which `proxyplane.Store` and `proxyplane.sync.Store` are made."""

from __future__ import annotations

from typing import TypeVar

from proxyplane._evictions import evict_later
from proxyplane._operations import Operation
from proxyplane._progress import Told
from proxyplane._runtime.progress import Progress
from proxyplane._store_futures import StoreFutures
from proxyplane._store_puts import StorePuts
from proxyplane._store_short import StoreShort

R = TypeVar("R")


class StoreCore(StorePuts, StoreShort, StoreFutures):
    """All that a store does, as operations that async and blocking code perform."""

    def told(
        self, operation: Operation[R], progress: Progress, *, made: bool = False
    ) -> Operation[R]:
        """The same operation, that calls `progress` as it comes on.

        Args:
            operation: A put or a get.
            progress: The user's function.
            made: Whether it makes a key, which nobody knows if the caller is cancelled in
                the end, or the function raises.
        """
        if not made:
            return Told(operation, progress)
        return Told(
            operation,
            progress,
            lambda key: self.evicting(str(key)),
            lambda key: evict_later(self.factory(str(key), False, None, False)),
        )
