"""The ways to keep objects, ours and ProxyStore's; what uses the medium itself is in `_bare`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.harness import reference_store
from proxyplane import LocalConnector, Store, sync

_THREADS = 8


class Way:
    """One way, with blocking calls.

    Args:
        place: URL of a server or of a directory; empty for the memory of this process.
    """

    store: Any

    def __init__(self, place: str) -> None:
        raise NotImplementedError

    def put(self, obj: Any) -> Any:
        """Puts one object."""
        return self.store.put(obj)

    def puts(self, objs: Sequence[Any]) -> list[Any]:
        """Puts many, one after the other."""
        return [self.put(obj) for obj in objs]

    def get(self, key: Any) -> Any:
        """Gets one object; its bytes alone where there is no serialiser."""
        return self.store.get(key)

    def gets(self, keys: Sequence[Any]) -> list[Any]:
        """Gets many, one after the other."""
        return [self.get(key) for key in keys]

    def together(self, keys: Sequence[Any]) -> list[Any]:
        """Gets many at once, as many callers would who know nothing of each other."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self.get, keys))

    async def putting(self, obj: Any) -> Any:
        """Puts one object in a loop, which stands still where there are blocking calls only."""
        return self.put(obj)

    async def getting(self, key: Any) -> Any:
        """Gets one object, likewise."""
        return self.get(key)

    def run(self, call: Any) -> Any:
        """What a coroutine gives."""
        return asyncio.run(call)

    def evict(self, key: Any) -> None:
        """Removes one object."""
        self.store.evict(key)

    def close(self) -> None:
        """Ends what was opened; objects stay."""
        self.store.close()


class Ours(Way):
    """Ours."""

    def __init__(self, place: str) -> None:
        self.store = sync.Store(f"bench-{uuid.uuid4().hex}", _ours(place), cache_size=0)


def _ours(place: str) -> Any:
    if not place:
        return LocalConnector()
    return f"{place}/ours" if place.startswith("file:") else place


class InLoop(Way):
    """Awaited in a loop of its own, which stays between the calls."""

    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop

    def __init__(self, place: str) -> None:
        self.loop = type(self).new_loop()
        self.open(place)

    def open(self, place: str) -> None:
        """Gets ready."""
        raise NotImplementedError

    async def ending(self) -> None:
        """Ends what was opened."""
        raise NotImplementedError

    def run(self, call: Any) -> Any:
        return self.loop.run_until_complete(call)

    def put(self, obj: Any) -> Any:
        return self.run(self.putting(obj))

    def puts(self, objs: Sequence[Any]) -> list[Any]:
        async def put_all() -> list[Any]:
            return [await self.putting(obj) for obj in objs]

        return self.run(put_all())

    def get(self, key: Any) -> Any:
        return self.run(self.getting(key))

    def gets(self, keys: Sequence[Any]) -> list[Any]:
        async def get_all() -> list[Any]:
            return [await self.getting(key) for key in keys]

        return self.run(get_all())

    def together(self, keys: Sequence[Any]) -> list[Any]:
        async def get_all() -> list[Any]:
            return await asyncio.gather(*map(self.getting, keys))

        return self.run(get_all())

    def close(self) -> None:
        self.run(self.ending())
        self.loop.close()


class Awaited(InLoop):
    """Ours, awaited."""

    def open(self, place: str) -> None:
        self.awaited = Store(f"bench-{uuid.uuid4().hex}", _ours(place), cache_size=0)
        # Bound here: what the loop awaits is the store's own coroutine, and nothing around it.
        self.putting, self.getting = self.awaited.put, self.awaited.get  # type: ignore[method-assign]

    def evict(self, key: Any) -> None:
        self.run(self.awaited.evict(key))

    async def ending(self) -> None:
        await self.awaited.aclose()


class Reference(Way):
    """ProxyStore's store, which blocks."""

    def __init__(self, place: str) -> None:
        place = f"{place}/reference" if place.startswith("file:") else place
        self.store = reference_store("bench", place)
        self._clears = not place

    def close(self) -> None:
        # Else it removes what others are about to read.
        self.store.close(**({} if self._clears else {"clear": False}))
