"""The blocking facade: the names of the async API, and nothing to await.

For plain scripts, worker functions, threads and notebooks. Calls block the thread that makes
them; their I/O runs on the library's own event loop, or in the calling thread where the medium
has a shortcut. Every method is one line: what it does is said once, in `proxyplane.Store`.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from proxyplane import future as _future
from proxyplane import registry
from proxyplane import store as _async
from proxyplane._operations import Operation
from proxyplane._runtime.blocking import about_to_block
from proxyplane._runtime.io_thread import Outcome, io_thread
from proxyplane._runtime.progress import Progress
from proxyplane._store_base import SerializerLike
from proxyplane.abc import Connector, Serializer
from proxyplane.config import Checksum, OnBlocking, StoreConfig
from proxyplane.future import ProxyFuture, ReturnWhen
from proxyplane.metrics import Instrument, Metrics
from proxyplane.proxy import Proxy, ProxyLocker, evict, extract, resolve
from proxyplane.registry import to_proxy

if TYPE_CHECKING:
    from proxyplane._store_leases import Lifetime
    from proxyplane.ownership import OwnedProxy

__all__ = [
    "Store",
    "as_completed",
    "evict",
    "extract",
    "get_store",
    "resolve",
    "to_proxy",
    "wait",
]

T = TypeVar("T")


class Store:
    """Blocking twin of `proxyplane.Store`, with the same arguments; entered with plain ``with``."""

    def __init__(
        self,
        name: str,
        connector: Connector | str,
        *,
        serializer: Serializer | str | None = None,
        checksum: bool | Checksum = False,
        cache_size: int | None = None,
        cache_bytes: int | None = None,
        on_blocking: OnBlocking | None = None,
        eager: bool = True,
        signing_key: str | Sequence[str] | None = None,
        allow: Collection[str] | None = None,
        register: bool = False,
        metrics: bool = False,
        instrument: Instrument | None = None,
    ) -> None:
        self._store = _async.Store(
            name,
            connector,
            serializer=serializer,
            checksum=checksum,
            cache_size=cache_size,
            cache_bytes=cache_bytes,
            on_blocking=on_blocking,
            eager=eager,
            signing_key=signing_key,
            allow=allow,
            register=register,
            metrics=metrics,
            instrument=instrument,
        )

    @classmethod
    def of(cls, store: _async.Store) -> Store:
        """The blocking facade of an async store; both share everything."""
        self = cls.__new__(cls)
        self._store = store
        return self

    @classmethod
    def from_config(cls, config: StoreConfig, *, register: bool = False) -> Store:
        """Blocking twin of `proxyplane.Store.from_config`."""
        return cls.of(_async.Store.from_config(config, register=register))

    @classmethod
    def from_url(cls, url: str, *, register: bool = False) -> Store:
        """Blocking twin of `proxyplane.Store.from_url`."""
        return cls.of(_async.Store.from_url(url, register=register))

    def config(self) -> StoreConfig:
        """Blocking twin of `proxyplane.Store.config`."""
        return self._store.config()

    @property
    def name(self) -> str:
        """Name of the store."""
        return self._store.name

    @property
    def asynchronous(self) -> _async.Store:
        """The async store underneath, for code that awaits; the inverse of `of`."""
        return self._store

    @property
    def connector(self) -> Connector:
        """Where the objects go."""
        return self._store.connector

    @property
    def metrics(self) -> Metrics | None:
        """What was counted; None unless it was asked for."""
        return self._store.metrics

    @property
    def closed(self) -> bool:
        """Whether the store was closed."""
        return self._store.closed

    def __enter__(self) -> Store:
        self._store.enter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self, *, clear: bool = False) -> None:
        """Blocking twin of `proxyplane.Store.aclose`."""
        self._do(self._store.closing(clear))

    def __repr__(self) -> str:
        return repr(self._store).replace("<Store", "<sync.Store", 1)

    def __reduce__(self) -> NoReturn:
        self._store.__reduce__()

    def _do(self, operation: Operation[T]) -> T:
        return operation.perform_blocking(self._store.on_blocking)

    # -- objects --------------------------------------------------------------------------------

    def put(
        self,
        obj: Any,
        *,
        key: str | None = None,
        overwrite: bool = True,
        serializer: SerializerLike = None,
        tags: Collection[str] = (),
        progress: Progress | None = None,
        ttl: float | None = None,
        lifetime: Lifetime | None = None,
    ) -> str:
        """Blocking twin of `proxyplane.Store.put`."""
        keep = self._store.keep(ttl, lifetime)
        operation = self._store.putting(obj, key, serializer, tags, overwrite, keep)
        if progress is not None:
            operation = self._store.told(operation, progress, made=key is None)
        return self._do(operation)

    def put_batch(
        self,
        objs: Sequence[Any],
        *,
        serializer: SerializerLike = None,
        tags: Collection[str] = (),
        ttl: float | None = None,
        lifetime: Lifetime | None = None,
    ) -> list[str]:
        """Blocking twin of `proxyplane.Store.put_batch`."""
        keep = self._store.keep(ttl, lifetime)
        return self._do(self._store.putting_batch(objs, serializer, tags, keep))

    @overload
    def get(
        self, key: str, *, strict: bool = ..., progress: Progress | None = None
    ) -> Any | None: ...
    @overload
    def get(
        self, key: str, default: T, *, strict: bool = ..., progress: Progress | None = None
    ) -> Any | T: ...

    def get(
        self,
        key: str,
        default: Any = None,
        *,
        strict: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """Blocking twin of `proxyplane.Store.get`."""
        if not strict and progress is None:
            return self._store.read_here(key, default)
        operation = self._store.getting(key, default, strict)
        if progress is not None:
            operation = self._store.told(operation, progress)
        return self._do(operation)

    def get_batch(
        self, keys: Sequence[str], default: Any = None, *, strict: bool = False
    ) -> list[Any]:
        """Blocking twin of `proxyplane.Store.get_batch`."""
        return self._do(self._store.getting_batch(keys, default, strict))

    def exists(self, key: str) -> bool:
        """Blocking twin of `proxyplane.Store.exists`."""
        return self._do(self._store.looking(key))

    def evict(self, key: str) -> bool:
        """Blocking twin of `proxyplane.Store.evict`."""
        return self._do(self._store.evicting(key))

    def evict_batch(self, keys: Sequence[str]) -> list[bool]:
        """Blocking twin of `proxyplane.Store.evict_batch`."""
        return self._do(self._store.evicting_batch(keys))

    def extend(self, keys: Sequence[str], ttl: float | None) -> list[bool]:
        """Blocking twin of `proxyplane.Store.extend`."""
        return self._do(self._store.extending(keys, ttl))

    def is_cached(self, key: str) -> bool:
        """Blocking twin of `proxyplane.Store.is_cached`."""
        return self._store.is_cached(key)

    # -- proxies --------------------------------------------------------------------------------

    def proxy(
        self,
        obj: T,
        *,
        key: str | None = None,
        overwrite: bool = True,
        strict: bool = False,
        evict: bool = False,
        eager: bool | None = None,
        serializer: SerializerLike = None,
        populate_target: bool = True,
        skip_nonproxiable: bool = False,
        tags: Collection[str] = (),
        progress: Progress | None = None,
        ttl: float | None = None,
        lifetime: Lifetime | None = None,
    ) -> Proxy[T]:
        """Blocking twin of `proxyplane.Store.proxy`."""
        operation = self._store.proxying_with(
            obj,
            key,
            serializer,
            evict,
            populate_target,
            skip_nonproxiable,
            eager,
            tags,
            strict,
            overwrite,
            progress,
            ttl,
            lifetime,
        )
        proxy: Proxy[T] = self._do(operation)
        return proxy

    def proxy_batch(
        self,
        objs: Sequence[T],
        *,
        evict: bool = False,
        eager: bool | None = None,
        serializer: SerializerLike = None,
        populate_target: bool = True,
        skip_nonproxiable: bool = False,
        tags: Collection[str] = (),
        ttl: float | None = None,
        lifetime: Lifetime | None = None,
    ) -> list[Proxy[T]]:
        """Blocking twin of `proxyplane.Store.proxy_batch`."""
        keep = self._store.keep(ttl, lifetime, evict)
        return self._do(
            self._store.proxying_batch(
                objs, serializer, evict, populate_target, skip_nonproxiable, eager, tags, keep
            )
        )

    def locked_proxy(
        self,
        obj: T,
        *,
        key: str | None = None,
        overwrite: bool = True,
        strict: bool = False,
        evict: bool = False,
        eager: bool | None = None,
        serializer: SerializerLike = None,
        populate_target: bool = True,
        tags: Collection[str] = (),
        progress: Progress | None = None,
        ttl: float | None = None,
        lifetime: Lifetime | None = None,
    ) -> ProxyLocker[T]:
        """Blocking twin of `proxyplane.Store.locked_proxy`."""
        return ProxyLocker(
            self.proxy(
                obj,
                key=key,
                overwrite=overwrite,
                strict=strict,
                evict=evict,
                eager=eager,
                serializer=serializer,
                populate_target=populate_target,
                tags=tags,
                progress=progress,
                ttl=ttl,
                lifetime=lifetime,
            )
        )

    def owned_proxy(
        self,
        obj: T,
        *,
        eager: bool | None = None,
        serializer: SerializerLike = None,
        populate_target: bool = True,
        skip_nonproxiable: bool = False,
        tags: Collection[str] = (),
        progress: Progress | None = None,
        ttl: float | None = None,
    ) -> OwnedProxy[T]:
        """Blocking twin of `proxyplane.Store.owned_proxy`."""
        from proxyplane.ownership import owning  # not all who have a store need it

        operation = owning(
            self._store, obj, serializer, populate_target, skip_nonproxiable, eager, tags, ttl
        )
        if progress is not None:
            operation = self._store.told(operation, progress, made=True)
        return self._do(operation)

    def proxy_from_key(
        self,
        key: str,
        *,
        strict: bool = False,
        evict: bool = False,
        eager: bool | None = None,
    ) -> Proxy[Any]:
        """Blocking twin of `proxyplane.Store.proxy_from_key`."""
        return self._store.proxy_from_key(key, strict=strict, evict=evict, eager=eager)

    # -- futures --------------------------------------------------------------------------------

    def future(
        self,
        *,
        type: type[T] | None = None,
        evict: bool = False,
        eager: bool | None = None,
        tags: Collection[str] = (),
        ttl: float | None = None,
        lifetime: Lifetime | None = None,
    ) -> ProxyFuture[T]:
        """Blocking twin of `proxyplane.Store.future`."""
        keep = self._store.keep(ttl, lifetime, evict)
        return self._do(self._store.promising(type, evict, eager, tags, keep))


def get_store(name: str | Proxy[Any]) -> Store:
    """Blocking twin of `proxyplane.get_store`."""
    return Store.of(registry.get_store(name))


def wait(
    futures: Iterable[ProxyFuture[Any]],
    *,
    timeout: float | None = None,
    return_when: ReturnWhen = "ALL_COMPLETED",
) -> tuple[set[ProxyFuture[Any]], set[ProxyFuture[Any]]]:
    """Blocking twin of `proxyplane.wait`."""
    about_to_block(lambda: "waiting for futures")
    waiting = _future.wait(futures, timeout=timeout, return_when=return_when)
    return io_thread().run(waiting)


def as_completed(
    futures: Iterable[ProxyFuture[T]], *, timeout: float | None = None
) -> Iterator[ProxyFuture[T]]:
    """Blocking twin of `proxyplane.as_completed`."""
    about_to_block(lambda: "waiting for futures")
    ended: queue.SimpleQueue[ProxyFuture[T] | Outcome[None]] = queue.SimpleQueue()

    async def watch() -> None:
        async for future in _future.as_completed(futures, timeout=timeout):
            ended.put(future)

    io = io_thread()
    spawned = io.spawn(watch(), ended.put)
    try:
        # The outcome comes last, also when the I/O thread ends.
        while not isinstance(one := ended.get(), Outcome):
            yield one
        one.unwrap()
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            io.loop.call_soon_threadsafe(spawned.cancel)
