"""The commonest call, a get of one object by its key, without an operation around it.

What `StoreGets.getting` makes is for all who perform, watch, follow and delay it; for a small
object, to make it and to go through it takes as long as to decode the object.
"""

from __future__ import annotations

import asyncio
from typing import Any

from proxyplane._runtime.blocking import about_to_block
from proxyplane._runtime.io_thread import io_thread
from proxyplane._runtime.workers import run_in_worker
from proxyplane._store_checks import require_key
from proxyplane._store_gets import StoreGets
from proxyplane.cache import MISSING
from proxyplane.serialization import TOO_LONG


class StoreShort(StoreGets):
    """The short ways; an instrument has them lead through the operation."""

    async def read(self, key: str, default: Any) -> Any:
        """`getting`, performed on the running loop."""
        self.require_open()
        require_key(key)
        obj = self._cache.get(key)
        if obj is not MISSING:
            return obj
        if self._is_name(key):
            return await self._reading_name(key, lambda: default).perform()
        since = self._cache.drops
        buffer = await self.connector.get(key)
        if buffer is None:
            return default
        if self.trust.ready:
            obj = self._decode(key, buffer, since, brief=True)
            if obj is not TOO_LONG:
                return obj
        return await run_in_worker(self._decode, key, buffer, since)

    def read_here(self, key: str, default: Any) -> Any:
        """`getting`, performed in this thread, which is blocked meanwhile."""
        self.require_open()
        require_key(key)
        obj = self._cache.get(key)
        if obj is not MISSING:
            return obj
        if self._is_name(key):
            return self._reading_name(key, lambda: default).perform_blocking(self.on_blocking)
        if asyncio._get_running_loop() is not None:
            about_to_block(lambda: f"getting {key!r} from {self!r}", self.on_blocking)
        since = self._cache.drops
        if self._shortcut is not None:
            buffer = self._shortcut.get_sync(key)
        else:
            buffer = io_thread().run(self.connector.get(key))
        return default if buffer is None else self._decode(key, buffer, since)
