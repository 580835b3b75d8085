"""How a store gives objects back: read, behind a proxy, looked for, evicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from proxyplane._operations import Known, Operation
from proxyplane._store_base import StoreBase
from proxyplane._store_checks import require_key, require_keys
from proxyplane.abc import Buffer
from proxyplane.cache import MISSING
from proxyplane.exceptions import ObjectLostError
from proxyplane.hints import NO_HINTS
from proxyplane.proxy import Proxy, make_proxy


class StoreGets(StoreBase):
    """The operations on objects that are stored."""

    def getting(self, key: str, default: Any) -> Operation[Any]:
        """Gets an object, from the cache if it is there."""
        self.require_open()
        require_key(key)
        found = self._cache.get(key)
        if found is not MISSING:
            return Known(found)
        return self._reading(key, None, lambda: default, cache=True)

    def resolving(
        self, key: str, size: int | None, evict: bool, deferred: bool, missing: Exception
    ) -> Operation[Any]:
        """Gets the object of a proxy past the cache; raises `missing` if there is none.

        One that is deferred is waited for.
        """
        self.require_open()

        def absent() -> Any:
            raise missing

        operation = self._reading(key, size, absent, cache=not evict)
        if deferred:
            medium = self._deferrable()

            async def read_later(request: None) -> Buffer | None:
                buffer = await medium.get(key, size=size)
                if buffer is None:
                    await medium.wait(key)
                    buffer = await medium.get(key, size=size)
                    if buffer is None and not evict:
                        raise self._gone(key)
                return buffer

            # No shortcut: a thread cannot wait without a loop.
            operation.io, operation.io_here = read_later, None
        if evict:
            # Of many who read it at once, the one who evicts it may use it; the others find that
            # they came too late.
            read, read_here = operation.io, operation.io_here

            async def claim(request: None) -> Buffer | None:
                buffer = await read(request)
                return buffer if buffer is not None and await self.evicting(key).perform() else None

            def claim_here(request: None) -> Buffer | None:
                buffer = cast(Any, read_here)(request)
                return buffer if buffer is not None and self.evicting(key).work() else None

            operation.io = claim
            operation.io_here = claim_here if read_here and self.claims_here else None
        return operation

    def reading_set(self, key: str) -> Operation[Any]:
        """Gets the object of a key made by `promising` that was seen to be set."""

        def absent() -> Any:
            raise self._gone(key)

        self.require_open()
        found = self._cache.get(key)
        return (
            Known(found) if found is not MISSING else self._reading(key, None, absent, cache=True)
        )

    def _gone(self, key: str) -> ObjectLostError:
        return ObjectLostError(
            f"the result of the future {key!r} in {self!r} was there and is gone",
            hint="it was evicted, or the medium dropped it",
        )

    def _reading(
        self, key: str, size: int | None, absent: Callable[[], Any], *, cache: bool
    ) -> Operation[Any]:
        since = self._cache.drops

        def finish(buffer: Buffer | None) -> Any:
            return absent() if buffer is None else self._decode(key, buffer, since, cache)

        return Operation(
            lambda: f"getting {key!r} from {self!r}",
            io=lambda _: self.connector.get(key, size=size),
            io_here=self._here(lambda medium, _: medium.get_sync(key, size=size)),
            finish=finish,
            finish_stalls=self._decoding_stalls,
        )

    def getting_batch(self, keys: Sequence[str], default: Any) -> Operation[list[Any]]:
        """Gets many objects, from the cache where they are there."""
        self.require_open()
        keys = require_keys(keys)
        found = {key: self._cache.get(key) for key in keys}
        absent = [key for key, obj in found.items() if obj is MISSING]
        since = self._cache.drops
        if not absent:
            return Known([found[key] for key in keys])

        def finish(buffers: list[Buffer | None]) -> list[Any]:
            for key, buffer in zip(absent, buffers, strict=True):
                found[key] = default if buffer is None else self._decode(key, buffer, since)
            return [found[key] for key in keys]

        return Operation(
            f"getting {len(keys)} objects from {self!r}",
            io=lambda _: self.connector.get_batch(absent),
            finish=finish,
            finish_stalls=lambda buffers: any(map(self._decoding_stalls, buffers)),
        )

    def looking(self, key: str) -> Operation[bool]:
        """Whether the key holds an object, by the medium's word."""
        self.require_open()
        require_key(key)
        return Operation(
            f"looking for {key!r} in {self!r}",
            io=lambda _: self.connector.exists(key),
            io_here=self._here(lambda medium, _: medium.exists_sync(key)),
        )

    def evicting(self, key: str) -> Operation[bool]:
        """Removes an object; gives whether it was there."""
        self.require_open()
        require_key(key)
        return Operation(
            lambda: f"evicting {key!r} from {self!r}",
            prepare=lambda: self._forget([key]),
            io=lambda _: self.connector.evict(key),
            io_here=self._here(lambda medium, _: medium.evict_sync(key)),
            finish=lambda gone: self._forget([key], gone),
        )

    def evicting_batch(self, keys: Sequence[str]) -> Operation[list[bool]]:
        """Removes many objects; gives for each key whether it was there."""
        self.require_open()
        keys = require_keys(keys)
        return Operation(
            f"evicting {len(keys)} objects from {self!r}",
            prepare=lambda: self._forget(keys),
            io=lambda _: self.connector.evict_batch(keys),
            finish=lambda gone: self._forget(keys, gone),
        )

    def _forget(self, keys: Sequence[str], gone: Any = None) -> Any:
        # Before the medium evicts, which may fail halfway, and after: a reader in between may
        # have left the object here again.
        for key in keys:
            self._cache.pop(key)
        return gone

    def proxy_of_key(self, key: str, evict: bool, eager: bool | None = None) -> Proxy[Any]:
        """A proxy of whatever the key holds."""
        self.require_open()
        require_key(key)
        return make_proxy(self.factory(key, evict, None, eager), NO_HINTS)
