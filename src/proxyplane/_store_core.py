"""A store's operations, from which `proxyplane.Store` and `proxyplane.sync.Store` are made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar, cast

from proxyplane import _stores, serialization
from proxyplane._operations import Known, Operation
from proxyplane._runtime.source import decoding
from proxyplane._store_checks import (
    decoding_stalls,
    is_proxiable,
    require_key,
    require_keys,
    require_tags,
)
from proxyplane.abc import Buffer, Connector, DeferrableConnector, Serializer, SupportsSync
from proxyplane.cache import MISSING, LRUCache
from proxyplane.config import StoreConfig
from proxyplane.exceptions import (
    FutureAlreadySet,
    KeyExistsError,
    ObjectLostError,
    StoreClosedError,
)
from proxyplane.factory import StoreFactory
from proxyplane.failures import Failure
from proxyplane.future import ProxyFuture
from proxyplane.hints import NO_HINTS, Hints, type_name
from proxyplane.proxy import Proxy, make_proxy

T = TypeVar("T")

# For a message: to ask each connector would import its driver.
DEFERRABLE = ("FileConnector", "LocalConnector", "RedisConnector")

SerializerLike = Serializer | str | None


class StoreCore:
    """Connector, cache and configuration of a store, and what it does with them.

    Args:
        config: What makes the store.
        connector: The connector that the configuration names.
    """

    def __init__(self, config: StoreConfig, connector: Connector) -> None:
        self._serializer = self._chosen(config.serializer)
        self._cache = LRUCache(*config.cache_limits())
        self._config = config
        self.connector = connector
        self._shortcut = connector if isinstance(connector, SupportsSync) else None
        self._closed = False
        self._to_end = self._to_clear = False  # what a close that failed leaves to the next one
        self.name = config.name
        self.reference = config.to_url()
        self.on_blocking = config.on_blocking
        self.eager = config.eager

    @property
    def closed(self) -> bool:
        """Whether the store was closed."""
        return self._closed

    @property
    def has_shortcut(self) -> bool:
        """Whether the medium can be used in the calling thread, without a loop."""
        return self._shortcut is not None

    def cached(self, key: str) -> Any:
        """The object of `key` from the cache, or MISSING."""
        return self._cache.get(key)

    def __repr__(self) -> str:
        return f"<Store {self.name!r} at {self._config.connector}{', closed' * self._closed}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} holds connections and cannot be pickled; send its proxies, which find it "
            "by themselves, or send store.config() and use Store.from_config there"
        )

    def enter(self) -> None:
        """Gives the store its name in this process, as entering a ``with`` block does."""
        self.require_open()
        _stores.register(self, exist_ok=True)

    def closing(self, clear: bool) -> Operation[None]:
        """Closes the store; nothing the second time, unless the first one failed."""
        if self._closed and not self._to_end:
            return Known(None)

        def prepare() -> bool:
            self._closed = self._to_end = True
            self._to_clear |= clear
            _stores.unregister(self.name, self)
            self._cache.clear()
            return self._to_clear

        async def end(clear: bool) -> None:
            await self.connector.aclose(clear=clear)
            self._to_end = False

        return Operation(f"closing {self!r}", prepare=prepare, io=end)

    # -- operations -----------------------------------------------------------------------------

    def putting(
        self, obj: Any, key: str | None, serializer: SerializerLike, tags: Collection[str] = ()
    ) -> Operation[str]:
        """Stores an object; gives its key."""
        return self._putting(obj, key, serializer, tags, lambda key, size: key)

    def proxying(
        self,
        obj: Any,
        key: str | None,
        serializer: SerializerLike,
        evict: bool,
        populate_target: bool,
        skip_nonproxiable: bool,
        eager: bool | None = None,
        tags: Collection[str] = (),
    ) -> Operation[Any]:
        """Stores an object; gives a proxy of it."""
        if not is_proxiable(obj, skip_nonproxiable):
            return Known(obj)
        return self._putting(
            obj,
            key,
            serializer,
            tags,
            lambda key, size: self._make_proxy(obj, key, size, evict, eager, populate_target),
        )

    def _putting(
        self,
        obj: Any,
        key: str | None,
        serializer: SerializerLike,
        tags: Collection[str],
        result: Callable[[str, int], Any],
    ) -> Operation[Any]:
        self.require_open()
        tagged = self._tagged(tags)
        if key is not None:
            require_key(key)
        size = 0

        def prepare() -> list[Buffer]:
            nonlocal size
            frames = self._encode(obj, serializer)
            size = serialization.frames_size(frames)
            return frames

        return Operation(
            lambda: f"putting an object in {self!r}",
            io=lambda frames: self.connector.put(frames, key=key, **tagged),
            io_here=None if tagged else self._here(lambda it, frames: it.put_sync(frames, key=key)),
            prepare=prepare,
            prepare_stalls=partial(self._encoding_stalls, obj),
            finish=lambda key: result(key, size),
        )

    def putting_batch(
        self, objs: Sequence[Any], serializer: SerializerLike, tags: Collection[str] = ()
    ) -> Operation[list[str]]:
        """Stores many objects; gives their keys."""
        return self._putting_batch(objs, serializer, tags, lambda i, key, size: key)

    def proxying_batch(
        self,
        objs: Sequence[Any],
        serializer: SerializerLike,
        evict: bool,
        populate_target: bool,
        skip_nonproxiable: bool,
        eager: bool | None = None,
        tags: Collection[str] = (),
    ) -> Operation[list[Any]]:
        """Stores many objects; gives proxies in their places."""
        results = list(objs)
        places = [i for i, obj in enumerate(results) if is_proxiable(obj, skip_nonproxiable)]

        def result(i: int, key: str, size: int) -> None:
            place = places[i]
            obj = results[place]
            results[place] = self._make_proxy(obj, key, size, evict, eager, populate_target)

        operation: Operation[Any] = self._putting_batch(
            [results[i] for i in places], serializer, tags, result
        )
        return operation.then(lambda _: results)

    def _putting_batch(
        self,
        objs: Sequence[Any],
        serializer: SerializerLike,
        tags: Collection[str],
        result: Callable[[int, str, int], Any],
    ) -> Operation[list[Any]]:
        self.require_open()
        tagged = self._tagged(tags)
        objs = list(objs)  # any iterable, and as it is now
        sizes: list[int] = []

        def prepare() -> list[list[Buffer]]:
            batch = [self._encode(obj, serializer) for obj in objs]
            sizes[:] = map(serialization.frames_size, batch)
            return batch

        def finish(keys: list[str]) -> list[Any]:
            return [result(i, *stored) for i, stored in enumerate(zip(keys, sizes, strict=True))]

        return Operation(
            f"putting {len(objs)} objects in {self!r}",
            prepare=prepare,
            prepare_stalls=partial(self._encoding_stalls, objs),
            io=lambda batch: self.connector.put_batch(batch, **tagged),
            finish=finish,
        )

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
            operation.io_here = read_here and claim_here
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
            finish_stalls=decoding_stalls,
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
            finish_stalls=lambda buffers: any(map(decoding_stalls, buffers)),
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

    def promising(
        self, kind: type | None, evict: bool, tags: Collection[str] = ()
    ) -> Operation[ProxyFuture[Any]]:
        """Makes a key whose object comes later; gives the future of it."""
        medium = self._deferrable()
        tagged = self._tagged(tags)

        def finish(key: str) -> ProxyFuture[Any]:
            factory: StoreFactory[Any] = StoreFactory(
                self.reference, key, evict=evict, deferred=True, eager=self.eager, store=self
            )
            return ProxyFuture(factory, None if kind is None else type_name(kind))

        return Operation(
            f"making a future in {self!r}", io=lambda _: medium.new_key(**tagged), finish=finish
        )

    def setting(self, key: str, obj: Any, serializer: SerializerLike = None) -> Operation[None]:
        """Stores the object of a key made by `promising`; once."""
        medium = self._deferrable()

        async def set_once(frames: list[Buffer]) -> None:
            try:
                await medium.set(key, frames)
            except KeyExistsError as error:
                raise FutureAlreadySet(
                    f"the future {key!r} in {self!r} is done already",
                    hint="a future is set once: to a result, an exception, or cancelled",
                ) from error

        return Operation(
            f"setting a future in {self!r}",
            prepare=partial(self._encode, obj, serializer),
            prepare_stalls=partial(self._encoding_stalls, obj),
            io=set_once,
        )

    def awaiting(self, key: str, timeout: float | None) -> Operation[None]:
        """Ends when the key holds an object; raises TimeoutError after `timeout` seconds."""
        medium = self._deferrable()
        return Operation(
            f"waiting for a future in {self!r}", io=lambda _: medium.wait(key, timeout)
        )

    # -- the steps they share -------------------------------------------------------------------

    def require_open(self) -> None:
        """Raises StoreClosedError if the store was closed."""
        if self._closed:
            raise StoreClosedError(f"store {self.name!r} is closed", hint="make a new one")

    def _deferrable(self) -> DeferrableConnector:
        self.require_open()
        if isinstance(self.connector, DeferrableConnector):
            return self.connector
        raise NotImplementedError(
            f"{type(self.connector).__name__} cannot defer, so its stores have no futures; "
            f"connectors that can: {', '.join(DEFERRABLE)}"
        )

    def _tagged(self, tags: Collection[str]) -> dict[str, Any]:
        """The tags of an object as an argument for the connector; none if there are no tags."""
        if tags and not self.connector.takes_tags:
            raise NotImplementedError(
                f"{type(self.connector).__name__} has no use for tags; a MultiConnector chooses by "
                "them among connectors"
            )
        return {"tags": require_tags(tags)} if tags else {}

    def _here(self, call: Callable[[SupportsSync, Any], Any]) -> Callable[[Any], Any] | None:
        """`call` with the medium's shortcut; None where it has none."""
        medium = self._shortcut
        return None if medium is None else partial(call, medium)

    def _chosen(self, serializer: SerializerLike) -> Serializer | None:
        if isinstance(serializer, str):
            return serialization.get_serializer(serializer)
        return serializer

    def _encode(self, obj: Any, serializer: SerializerLike) -> list[Buffer]:
        chosen = self._chosen(serializer) or self._serializer
        return serialization.encode(obj, serializer=chosen, checksum=self._config.checksum)

    def _encoding_stalls(self, obj: Any) -> bool:
        return serialization.encode_may_stall(obj, checksum=self._config.checksum)

    def _decode(self, key: str, buffer: Buffer, since: int, cache: bool = True) -> Any:
        with decoding:
            obj = serialization.decode(buffer)
        if type(obj) is Failure:
            raise obj.to_raise()
        if cache:
            self._cache.put(key, obj, len(buffer), since=since)
        return obj

    def factory(
        self, key: str, evict: bool, size: int | None, eager: bool | None = None
    ) -> StoreFactory[Any]:
        """What a proxy of `key` carries."""
        if eager is None:
            eager = self.eager
        return StoreFactory(self.reference, key, evict=evict, eager=eager, size=size, store=self)

    def proxy_of_key(self, key: str, evict: bool, eager: bool | None = None) -> Proxy[Any]:
        """A proxy of whatever the key holds."""
        self.require_open()
        require_key(key)
        return make_proxy(self.factory(key, evict, None, eager), NO_HINTS)

    def _make_proxy(
        self,
        obj: T,
        key: str,
        size: int,
        evict: bool,
        eager: bool | None,
        populate_target: bool,
    ) -> Proxy[T]:
        # A proxy that has its target already would never make its claim.
        target = obj if populate_target and not evict else MISSING
        return make_proxy(self.factory(key, evict, size, eager), Hints.of(obj, size), target)
