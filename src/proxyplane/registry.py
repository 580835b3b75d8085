"""Stores by name, the default store, and proxies without naming a store."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from proxyplane import _stores
from proxyplane._runtime.progress import Progress
from proxyplane._store_base import SerializerLike
from proxyplane.config import STORE_VARIABLE, StoreConfig, default_store_url
from proxyplane.exceptions import ConfigError
from proxyplane.factory import StoreFactory
from proxyplane.proxy import Proxy, get_factory
from proxyplane.store import Store

if TYPE_CHECKING:
    from proxyplane._store_leases import Lifetime

__all__ = [
    "ato_proxy",
    "default_store",
    "get_or_create_store",
    "get_store",
    "register_store",
    "set_default_store",
    "store_registration",
    "to_proxy",
    "unregister_store",
]

T = TypeVar("T")

_default: Store | None = None


class BlockingStore(Protocol):
    """What `proxyplane.sync.Store` is to the functions of this module."""

    @property
    def asynchronous(self) -> Store:
        """The async store underneath."""
        ...


def _underneath(store: Store | BlockingStore) -> Store:
    if isinstance(store, Store):
        return store
    found = getattr(store, "asynchronous", None)
    if isinstance(found, Store):
        return found
    raise TypeError(
        f"expected a proxyplane.Store or a proxyplane.sync.Store, got {type(store).__name__}"
    )


def get_store(name: str | Proxy[Any]) -> Store:
    """The store registered under a name in this process, or the store of a proxy.

    Raises:
        StoreNotFoundError: No store has this name.
        TypeError: The proxy was not made by a store.
    """
    if issubclass(type(name), Proxy):
        factory = get_factory(cast("Proxy[Any]", name))
        if not isinstance(factory, StoreFactory):
            raise TypeError(f"{name!r} was not made by a store")
        return cast(Store, factory.store)
    return cast(Store, _stores.require(cast(str, name)))


def register_store(store: Store | BlockingStore, *, exist_ok: bool = False) -> None:
    """Makes a store findable by its name, and by the proxies that arrive in this process.

    Args:
        store: An open store, async or blocking.
        exist_ok: Whether it may replace a store of the same name and configuration.

    Raises:
        StoreExistsError: The name is taken: by a store with another configuration, or by any
            other store unless `exist_ok`.
    """
    store = _underneath(store)
    store.require_open()
    _stores.register(store, exist_ok=exist_ok)


def unregister_store(name: str) -> None:
    """Frees a name; does nothing if no store has it. The store itself stays open."""
    _stores.unregister(name)


def get_or_create_store(config: StoreConfig) -> Store:
    """The store that a configuration describes: the one registered here, or a new one.

    Raises:
        StoreExistsError: The name is taken by a store with another configuration.
        ConfigError: The configuration describes no connector.
    """
    store = _stores.find(config.name)
    if store is None:
        store = Store.from_config(config)
        _stores.register(store, exist_ok=True)
    elif store.reference != config.to_url():
        _stores.refuse_namesake(store, config.to_url())
    return cast(Store, store)


@contextlib.contextmanager
def store_registration(*stores: Store | BlockingStore, exist_ok: bool = False) -> Iterator[None]:
    """Registers stores for the time of a ``with`` block; does not close them.

    Raises:
        StoreExistsError: A name is taken; then none of the stores is registered.
    """
    registered: list[Store] = []
    try:
        for store in map(_underneath, stores):
            register_store(store, exist_ok=exist_ok)
            registered.append(store)
        yield
    finally:
        for store in registered:
            _stores.unregister(store.name, store)


def set_default_store(store: Store | BlockingStore | None) -> None:
    """Sets the store that `to_proxy` uses when it is given none; None for the built-in one."""
    global _default
    _default = None if store is None else _underneath(store)


def default_store() -> Store:
    """The store that `to_proxy` uses when it is given none.

    Set by `set_default_store`; else described by `PROXYPLANE_STORE`, the URL of a store; else one
    named ``default`` over files, which needs no server.

    Raises:
        ConfigError: `PROXYPLANE_STORE` describes no store.
    """
    if _default is not None and not _default.closed:
        return _default
    url = default_store_url()
    if url is not None:
        try:
            config = StoreConfig.from_url(url, name="default")
        except ConfigError as error:
            raise ConfigError(
                f"the environment variable {STORE_VARIABLE} describes no store: {error}"
            ) from error
        return cast(Store, _stores.open_reference(config.to_url(), stays=True))
    from proxyplane.connectors.file import FileConnector  # only where it is the choice

    config = StoreConfig(name="default", connector=FileConnector().url)
    return cast(Store, _stores.open_reference(config.to_url(), stays=True))


def to_proxy(
    obj: T,
    *,
    key: str | None = None,
    overwrite: bool = True,
    strict: bool = False,
    store: Store | BlockingStore | None = None,
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
    """Stores an object and returns a proxy of it; blocks. Blocking twin of `ato_proxy`.

    Raises:
        As `ato_proxy`.
    """
    store = default_store() if store is None else _underneath(store)
    operation = store.proxying_with(
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
    return cast("Proxy[T]", operation.perform_blocking(store.on_blocking))


async def ato_proxy(
    obj: T,
    *,
    key: str | None = None,
    overwrite: bool = True,
    strict: bool = False,
    store: Store | BlockingStore | None = None,
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
    """Stores an object and returns a proxy of it: `Store.proxy` of the default store.

    Args:
        obj: Any object that can be pickled, but not None and not a bool.
        key: As for `Store.proxy`, like all that follow but one.
        overwrite: Whether an object that your key holds is replaced.
        strict: Whether the first use gets the latest object of the key.
        store: Where to, async or blocking; by default the `default_store`.
        evict: Whether the first use of a copy of the proxy removes the object.
        eager: Whether copies of the proxy resolve in the background where they arrive.
        serializer: A serialiser, or its id, for this object.
        populate_target: Whether the proxy returned here has its target from the start.
        skip_nonproxiable: Return what cannot be proxied as it is.
        tags: Tags, by which a `MultiConnector` decides where the object goes.
        progress: Told how many bytes are done, and of how many.
        ttl: Seconds until the object is gone; by default it stays.
        lifetime: With what the object ends.

    Raises:
        As `Store.proxy`.
    """
    store = default_store() if store is None else _underneath(store)
    return await store.proxy(
        obj,
        key=key,
        overwrite=overwrite,
        strict=strict,
        evict=evict,
        eager=eager,
        serializer=serializer,
        populate_target=populate_target,
        skip_nonproxiable=skip_nonproxiable,
        tags=tags,
        progress=progress,
        ttl=ttl,
        lifetime=lifetime,
    )
