"""A connector whose calls are made by its shortcut, in threads, behind coroutines."""

from __future__ import annotations

import asyncio

from proxyplane._runtime.io_thread import io_thread


class InThreads:
    """Puts, gets, looks and evicts in a worker thread each; all else is the connector's own."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    async def put(self, *args, **kwargs):
        return await asyncio.to_thread(self.inner.put_sync, *args, **kwargs)

    async def get(self, *args, **kwargs):
        return await asyncio.to_thread(self.inner.get_sync, *args, **kwargs)

    async def get_batch(self, *args, **kwargs):
        # On the library's loop, as blocking stores do.
        call = self.inner.get_batch(*args, **kwargs)
        return await asyncio.to_thread(io_thread().run, call)

    async def exists(self, key):
        return await asyncio.to_thread(self.inner.exists_sync, key)

    async def evict(self, key):
        return await asyncio.to_thread(self.inner.evict_sync, key)
