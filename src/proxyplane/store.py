"""The async store: objects in, keys and proxies out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from proxyplane import _stores, serialization
from proxyplane._observing import observe
from proxyplane._runtime.progress import Progress
from proxyplane._store_base import SerializerLike
from proxyplane._store_life import StoreLife
from proxyplane.abc import Connector, Serializer
from proxyplane.config import Checksum, OnBlocking, StoreConfig, connector_from_url
from proxyplane.exceptions import ConfigError
from proxyplane.future import ProxyFuture
from proxyplane.metrics import Instrument, Metrics
from proxyplane.proxy import Proxy, ProxyLocker

if TYPE_CHECKING:
    from proxyplane._store_leases import Lifetime
    from proxyplane.ownership import OwnedProxy

__all__ = ["Store"]

T = TypeVar("T")


class Store(StoreLife):
    """Stores objects through a connector and gives out keys and proxies of them.

    Used from async code; `proxyplane.sync.Store` is the same for code that may block. One store
    may be used from any number of event loops and threads at once.

    Entering it with ``async with`` registers it under its name, so that proxies which arrive in
    this process find it; leaving closes it. What it stored stays where it is, because others may
    still read it, unless it is closed with ``clear=True``.

    Args:
        name: Name of the store, any characters.
        connector: Where objects go: a connector, or a URL such as ``"file:///data/objects"``.
        serializer: A serialiser, or its id, for all objects; by default chosen for each object.
        checksum: Whether a checksum also covers the bodies of arrays and tables, which costs one
            pass over them on each side: True for ``"crc32"``, or its kind. ``"xxh3"`` takes a
            quarter of the time, and needs the package xxhash on both sides.
        cache_size: Objects to keep after they were read, 0 for none; by default
            `PROXYPLANE_CACHE_SIZE`, else 16. The cache gives the same object to everyone in this
            process.
        cache_bytes: Encoded bytes to keep so, at most; by default `PROXYPLANE_CACHE_BYTES`, else
            1 GiB.
        on_blocking: What a blocking touch on a thread with a running event loop does:
            ``"warn"``, ``"raise"`` or ``"allow"``; by default `PROXYPLANE_ON_BLOCKING`, else
            ``"warn"``.
        eager: Whether proxies of this store resolve in the background where they arrive, once they
            have not been passed on for a moment. `PROXYPLANE_EAGER` set to 0 forbids it for all
            that arrive in a process.
        signing_key: Reference to the secret that signs objects: ``"env:NAME"``, ``"file:/path"`` or
            ``"call:NAME"``, see `proxyplane.config.register_secret`. Objects that are not signed,
            or not for their key, are refused with an `UntrustedDataError` before anything of them
            is decoded. Of several the first signs, and all are accepted.
        allow: Ids of the serialisers that are accepted, to read and to write, for example
            ``{"numpy", "arrow", "bytes", "str"}`` for no pickle; by default `PROXYPLANE_ALLOW`,
            else all.
        register: Register the store now, without entering it.
        metrics: Whether to count operations, bytes and times into the attribute `metrics`.
        instrument: Is told of every operation as it ends.

    Attributes:
        metrics: What was counted; None unless it was asked for.

    Raises:
        ConfigError: An argument or an environment variable is wrong; the message names it.
        StoreExistsError: `register` is set and the name is taken.
    """

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
        if isinstance(connector, str):
            connector = connector_from_url(connector)
        elif not isinstance(connector, Connector):
            raise ConfigError(
                f"the connector of a store is a Connector or a URL, not {connector!r}",
                hint="for example FileConnector(), or 'redis://localhost:6379'",
            )
        if serializer is not None and not isinstance(serializer, str):
            serialization.register_serializer(serializer)
            serializer = serializer.id
        config = StoreConfig(
            name=name,
            connector=connector.url,
            serializer=serializer,
            checksum=checksum,
            on_blocking=on_blocking,
            eager=eager,
            cache_size=cache_size,
            cache_bytes=cache_bytes,
            signing_key=signing_key or (),
            allow=allow,
            metrics=metrics,
        )
        super().__init__(config, connector)
        self.metrics = Metrics() if metrics else None
        instruments = [one for one in (self.metrics, instrument) if one is not None]
        if instruments:
            observe(self, instruments)
        if register:
            _stores.register(self)

    # -- configuration and life -----------------------------------------------------------------

    @classmethod
    def from_config(cls, config: StoreConfig, *, register: bool = False) -> Store:
        """Makes the store that `config` describes.

        Raises:
            ConfigError: The connector's URL is wrong.
        """
        return cls(
            config.name,
            config.connector,
            serializer=config.serializer,
            checksum=config.checksum,
            cache_size=config.cache_size,
            cache_bytes=config.cache_bytes,
            on_blocking=config.on_blocking,
            eager=config.eager,
            signing_key=config.signing_key,
            allow=config.allow,
            metrics=config.metrics,
            register=register,
        )

    @classmethod
    def from_url(cls, url: str, *, register: bool = False) -> Store:
        """Makes a store from one line: a connector's URL, ``#`` and the store's name.

        Raises:
            ConfigError: The line describes no store; the message names the part.
        """
        return cls.from_config(StoreConfig.from_url(url), register=register)

    # -- objects --------------------------------------------------------------------------------

    async def put(
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
        """Stores an object and returns its key.

        Args:
            obj: Any object that pickle or cloudpickle can encode.
            key: A key of your own; by default a new unique one, which is written once.
            overwrite: Whether an object that your key holds is replaced, in one step.
            serializer: A serialiser, or its id, for this object.
            tags: Tags of the object, by which a `MultiConnector` decides where it goes.
            progress: Called as ``progress(done, total)``, in bytes, some 20 times in a second at
                most, from this task on its loop, or for the blocking twin in its thread. The last
                call has both equal, when all is done, and there is none like it for what fails.
                If it raises, that ends the call, and nothing is stored under a key that was made.
            ttl: Seconds until the object is gone, whoever still refers to it; by default it stays.
            lifetime: With what the object ends: one of `proxyplane.lifetimes`.

        Raises:
            KeyExistsError: `key` is taken, and what it holds is not to be replaced, or cannot be.
            NoConnectorError: No connector of a `MultiConnector` takes the object.
            NotImplementedError: There are tags, or a lease, and the connector has no use for them.
            RuntimeError: The lifetime has ended.
            AlreadyOwnedError: What `key` holds has another lifetime, or an owner.
            ValueError: There is no lease of such a length, or the lifetime has one already.
            SerializationError: The object cannot be encoded.
            StoreFullError: There is no room.
            StoreClosedError: The store was closed.
            ConnectorError: The medium failed.
        """
        keep = self.keep(ttl, lifetime)
        operation = self.putting(obj, key, serializer, tags, overwrite, keep)
        if progress is not None:
            operation = self.told(operation, progress, made=key is None)
        return await operation.perform()

    async def put_batch(
        self,
        objs: Sequence[Any],
        *,
        serializer: SerializerLike = None,
        tags: Collection[str] = (),
        ttl: float | None = None,
        lifetime: Lifetime | None = None,
    ) -> list[str]:
        """Stores many objects, all or none, and returns their keys in order.

        Raises:
            As `put`.
        """
        keep = self.keep(ttl, lifetime)
        return await self.putting_batch(objs, serializer, tags, keep).perform()

    @overload
    async def get(
        self, key: str, *, strict: bool = ..., progress: Progress | None = None
    ) -> Any | None: ...
    @overload
    async def get(
        self, key: str, default: T, *, strict: bool = ..., progress: Progress | None = None
    ) -> Any | T: ...

    async def get(
        self,
        key: str,
        default: Any = None,
        *,
        strict: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """Gets an object; `default` if the key holds none.

        An object in the cache is returned as it is, also when it was evicted elsewhere, or replaced
        by another one.

        Args:
            key: The key.
            default: What to return if it holds nothing.
            strict: Whether it must be the object that the key holds now. That takes a look at the
                medium, and a transfer only if it is not the one in the cache.
            progress: As for `put`. What is mapped, and not moved, is done at once; for an object
                in the cache the call is ``progress(0, 0)``, and for none at all there is none.

        Raises:
            NotImplementedError: `strict`, and the connector cannot replace objects.
            ObjectLostError: The medium lost the object of a key of your own.
            SerializationError: What the key holds cannot be decoded.
            StoreClosedError: The store was closed.
            ConnectorError: The medium failed.
        """
        if not strict and progress is None:
            return await self.read(key, default)
        operation = self.getting(key, default, strict)
        if progress is not None:
            operation = self.told(operation, progress)
        return await operation.perform()

    async def get_batch(
        self, keys: Sequence[str], default: Any = None, *, strict: bool = False
    ) -> list[Any]:
        """Gets many objects, in the order of the keys; `default` for a key that holds none.

        Raises:
            As `get`.
        """
        return await self.getting_batch(keys, default, strict).perform()

    # -- proxies --------------------------------------------------------------------------------

    async def proxy(
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
        """Stores an object and returns a proxy of it.

        Args:
            obj: As for `put`, but not None and not a bool, which are compared with ``is``.
            key: As for `put`.
            overwrite: As for `put`.
            strict: Whether the first use of the proxy, and of each copy, gets the latest object of
                the key, and never one that was replaced before. Otherwise it may be any that the
                key held since the proxy was made. The proxy returned here is then unresolved.
            evict: Whether the first use of a copy of the proxy removes the object; later uses of
                others find it missing. The proxy returned here is then unresolved.
            eager: Whether copies of the proxy resolve in the background where they arrive; by
                default what the store says. One that evicts never does, since that is a claim.
            serializer: As for `put`.
            populate_target: Whether the proxy returned here has its target from the start, which
                keeps the object in memory as long as the proxy lives.
            skip_nonproxiable: Return what cannot be proxied as it is, instead of raising (type
                checkers then still see a proxy).
            tags: As for `put`.
            progress: As for `put`.
            ttl: As for `put`.
            lifetime: As for `put`; not together with `evict`.

        Raises:
            NonProxiableTypeError: The object is None or a bool.
            As `put`.
        """
        proxying = self.proxying_with(
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
        proxy: Proxy[T] = await proxying.perform()
        return proxy

    async def proxy_batch(
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
        """Stores many objects, all or none, and returns their proxies in order.

        The arguments are those of `proxy`. What is skipped keeps its position.

        Raises:
            As `proxy`.
        """
        keep = self.keep(ttl, lifetime, evict)
        return await self.proxying_batch(
            objs, serializer, evict, populate_target, skip_nonproxiable, eager, tags, keep
        ).perform()

    async def locked_proxy(
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
        """As `proxy`, in a box that cannot be resolved by accident.

        Raises:
            As `proxy`.
        """
        return ProxyLocker(
            await self.proxy(
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

    async def owned_proxy(
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
        """Stores an object and returns its owner: when that is gone, the object is evicted.

        Args:
            obj: As for `proxy`.
            eager: As for `proxy`, for its borrows too.
            serializer: As for `proxy`.
            populate_target: As for `proxy`.
            skip_nonproxiable: As for `proxy`.
            tags: As for `put`.
            progress: As for `put`.
            ttl: As for `put`; the object goes sooner with its owner, and an update has no lease.

        Raises:
            As `proxy`.
        """
        from proxyplane.ownership import owning  # not all who have a store need it

        operation = owning(
            self, obj, serializer, populate_target, skip_nonproxiable, eager, tags, ttl
        )
        if progress is not None:
            operation = self.told(operation, progress, made=True)
        owner: OwnedProxy[T] = await operation.perform()
        return owner

    def proxy_from_key(
        self,
        key: str,
        *,
        strict: bool = False,
        evict: bool = False,
        eager: bool | None = None,
    ) -> Proxy[Any]:
        """A proxy of the object that `key` holds; does not look whether it does.

        Args:
            key: A key that `put` returned.
            strict: As for `proxy`.
            evict: As for `proxy`.
            eager: As for `proxy`.

        Raises:
            NotImplementedError: `strict`, and the connector cannot replace objects.
        """
        return self.proxy_of_key(key, evict, eager, strict)

    # -- futures --------------------------------------------------------------------------------

    async def future(
        self,
        *,
        type: type[T] | None = None,
        evict: bool = False,
        eager: bool | None = None,
        tags: Collection[str] = (),
        ttl: float | None = None,
        lifetime: Lifetime | None = None,
    ) -> ProxyFuture[T]:
        """Makes a future, whose result some process will set.

        Args:
            type: The type that the result will have, if known; the future's proxies then answer
                probes such as ``isinstance`` while they wait.
            evict: Whether the first use of the result removes it from the store. The future and
                the proxies it gives in one process are one use.
            eager: As for `proxy`, of the proxies that it gives.
            tags: As for `put`.
            ttl: Seconds until the future is gone, and its result with it, set or not.
            lifetime: As for `proxy`; when it ends, who waits learns that in vain.

        Raises:
            NotImplementedError: The connector cannot defer; the message names those that can.
            StoreClosedError: The store was closed.
            ConnectorError: The medium failed.
        """
        keep = self.keep(ttl, lifetime, evict)
        return await self.promising(type, evict, eager, tags, keep).perform()


_stores.make_store = Store.from_config
