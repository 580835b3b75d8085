"""What the cache of a store keeps, when objects are evicted while others read them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import proxyplane as pp

Reader = Callable[[pp.Store, str], Awaitable[Any]]


async def by_get(store: pp.Store, key: str) -> Any:
    return await store.get(key)


async def by_get_batch(store: pp.Store, key: str) -> Any:
    return (await store.get_batch([key]))[0]


async def by_proxy(store: pp.Store, key: str) -> Any:
    return await store.proxy_from_key(key)


class HeldConnector(pp.LocalConnector):
    """Holds what it read back until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.read = asyncio.Event()
        self.let_go = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    async def get(self, key: str, *, size: int | None = None) -> Any:
        buffer = await super().get(key, size=size)
        self.loop.call_soon_threadsafe(self.read.set)
        while not self.let_go.is_set():  # from whatever loop
            await asyncio.sleep(0.001)
        return buffer


@pytest.mark.parametrize("reader", [by_get, by_get_batch, by_proxy])
@pytest.mark.parametrize("batch", [False, True])
async def test_what_is_evicted_while_it_is_read_is_not_cached(reader: Reader, batch: bool) -> None:
    """After an evict and another put of the same key, nobody gets the old object."""
    async with pp.Store("stale", HeldConnector()) as store:
        connector: Any = store.connector
        key = await store.put("old", key="chosen")
        reading = asyncio.ensure_future(reader(store, key))
        await connector.read.wait()
        if batch:
            assert await store.evict_batch([key]) == [True]
        else:
            assert await store.evict(key)
        connector.let_go.set()
        assert await reading == "old"
        await store.put("new", key="chosen")
        assert await store.get(key) == "new"


async def test_what_is_read_while_it_is_evicted_is_not_cached() -> None:
    """A reader that comes while the medium is evicting leaves nothing behind."""

    class SlowToEvict(pp.LocalConnector):
        async def evict(self, key: str) -> bool:
            assert await store.get(key) == "old"
            return await super().evict(key)

    async with pp.Store("stale", SlowToEvict()) as store:
        key = await store.put("old", key="chosen")
        assert await store.evict(key)
        assert await store.get(key) is None
