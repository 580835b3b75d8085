"""A store's operations, from which `proxyplane.Store` and `proxyplane.sync.Store` are made."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

from proxyplane._evictions import evict_later
from proxyplane._operations import Operation
from proxyplane._progress import Told
from proxyplane._runtime.progress import Progress
from proxyplane._store_base import SerializerLike
from proxyplane._store_futures import StoreFutures
from proxyplane._store_leases import Lifetime
from proxyplane._store_puts import StorePuts
from proxyplane._store_short import StoreShort

R = TypeVar("R")


class StoreCore(StorePuts, StoreShort, StoreFutures):
    """All that a store does, as operations that async and blocking code perform."""

    def proxying_with(
        self,
        obj: Any,
        key: str | None,
        serializer: SerializerLike,
        evict: bool,
        populate_target: bool,
        skip_nonproxiable: bool,
        eager: bool | None,
        tags: Collection[str],
        strict: bool,
        overwrite: bool,
        progress: Progress | None,
        ttl: float | None,
        lifetime: Lifetime | None,
    ) -> Operation[Any]:
        """`Store.proxy`, with all of its options; stores an object and gives a proxy of it."""
        keep = self.keep(ttl, lifetime, evict)
        proxying = self.proxying(
            obj,
            key,
            serializer,
            evict,
            populate_target,
            skip_nonproxiable,
            eager,
            tags,
            strict,
            keep,
            overwrite,
        )
        return proxying if progress is None else self.told(proxying, progress, made=key is None)

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
