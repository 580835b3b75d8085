"""Stores by name, the default store, and proxies without naming a store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar, cast

from proxyplane import _stores
from proxyplane.config import StoreConfig, default_store_url
from proxyplane.factory import StoreFactory
from proxyplane.proxy import Proxy, get_factory
from proxyplane.store import Store

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


def register_store(store: Store, *, exist_ok: bool = False) -> None:
    """Makes a store findable by its name, and by the proxies that arrive in this process.

    Args:
        store: An open store.
        exist_ok: Whether it may replace a store of the same name and configuration.

    Raises:
        StoreExistsError: The name is taken: by a store with another configuration, or by any
            other store unless `exist_ok`.
    """
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
def store_registration(*stores: Store, exist_ok: bool = False) -> Iterator[None]:
    """Registers stores for the time of a ``with`` block; does not close them.

    Raises:
        StoreExistsError: A name is taken; then none of the stores is registered.
    """
    registered: list[Store] = []
    try:
        for store in stores:
            register_store(store, exist_ok=exist_ok)
            registered.append(store)
        yield
    finally:
        for store in registered:
            _stores.unregister(store.name, store)


def set_default_store(store: Store | None) -> None:
    """Sets the store that `to_proxy` uses when it is given none; None for the built-in one."""
    global _default
    _default = store


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
        return cast(
            Store, _stores.open_reference(StoreConfig.from_url(url, name="default").to_url())
        )
    from proxyplane.connectors.file import FileConnector  # only where it is the choice

    config = StoreConfig(name="default", connector=FileConnector().url)
    return cast(Store, _stores.open_reference(config.to_url()))


def to_proxy(
    obj: T, *, key: str | None = None, store: Store | None = None, evict: bool = False
) -> Proxy[T]:
    """Stores an object and returns a proxy of it; blocks. Blocking twin of `ato_proxy`.

    Raises:
        As `ato_proxy`.
    """
    store = store or default_store()
    operation = store.proxying(obj, key, None, evict, True, False)
    return cast("Proxy[T]", operation.perform_blocking(store.on_blocking))


async def ato_proxy(
    obj: T, *, key: str | None = None, store: Store | None = None, evict: bool = False
) -> Proxy[T]:
    """Stores an object and returns a proxy of it.

    Args:
        obj: Any object that can be pickled, but not None and not a bool.
        key: A key of your own; by default a new unique one. Keys are write-once.
        store: Where to; by default the `default_store`.
        evict: Whether the first use of a copy of the proxy removes the object.

    Raises:
        NonProxiableTypeError: The object is None or a bool.
        KeyExistsError: `key` is taken.
        SerializationError: The object cannot be encoded.
        ConnectorError: The medium failed.
    """
    return await (store or default_store()).proxy(obj, key=key, evict=evict)
