"""How an async store is entered and left, and what it does with keys alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NoReturn, Self

from proxyplane._store_core import StoreCore
from proxyplane.config import StoreConfig


class StoreLife(StoreCore):
    """The part of `proxyplane.Store` that neither takes nor gives objects."""

    def config(self) -> StoreConfig:
        """What makes this store; picklable, holds no secret."""
        return self._config

    async def __aenter__(self) -> Self:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "proxyplane.Store runs on asyncio, and this is no event loop of asyncio; under "
                "Trio, use the blocking proxyplane.sync.Store in trio.to_thread.run_sync"
            ) from None
        self.enter()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __enter__(self) -> NoReturn:
        raise TypeError(
            "proxyplane.Store is async: enter it with `async with`, "
            "or use the blocking proxyplane.sync.Store"
        )

    def __exit__(self, *exc_info: object) -> None:
        """Never called; without it Python would complain of its absence, and not as above."""

    async def aclose(self, *, clear: bool = False) -> None:
        """Frees the name, drops the cache and closes the connector; a second call does nothing.

        If it fails, or is cancelled, the store is closed, and a second call does what is left.

        Args:
            clear: Also evict what was put through this store, and nothing else.

        Raises:
            ConnectorError: The medium failed while it was being cleared.
        """
        await self.closing(clear).perform()

    async def exists(self, key: str) -> bool:
        """Whether the key holds an object now; asks the medium, never the cache.

        Raises:
            StoreClosedError: The store was closed.
            ConnectorError: The medium failed.
        """
        return await self.looking(key).perform()

    async def evict(self, key: str) -> bool:
        """Removes an object; returns whether it was there.

        Raises:
            StoreClosedError: The store was closed.
            ConnectorError: The medium failed.
        """
        return await self.evicting(key).perform()

    async def evict_batch(self, keys: Sequence[str]) -> list[bool]:
        """Removes many objects; tells for each key whether it was there.

        Raises:
            As `evict`.
        """
        return await self.evicting_batch(keys).perform()

    async def extend(self, keys: Sequence[str], ttl: float | None) -> list[bool]:
        """Gives objects a new lease; tells for each key whether it still held one.

        Args:
            keys: The keys, also of futures.
            ttl: Seconds from now until they are gone; None for no lease any more.

        Raises:
            NotImplementedError: The medium keeps no leases.
            ValueError: There is no lease of such a length.
            StoreClosedError: The store was closed.
            ConnectorError: The medium failed; some leases may have changed.
        """
        return await self.extending(keys, ttl).perform()

    def is_cached(self, key: str) -> bool:
        """Whether the object of `key` is in this store's cache."""
        return key in self._cache
