"""What a proxy carries and names: its factory, the object's key and size, and its eviction."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from proxyplane._slots import factory_of, hints_of, require_proxy
from proxyplane.factory import StoreFactory

if TYPE_CHECKING:
    from proxyplane.proxy import Proxy

T = TypeVar("T")


def get_factory(proxy: Proxy[T]) -> Callable[[], T]:
    """The factory of a proxy; never fetches the target."""
    require_proxy(proxy)
    return cast("Callable[[], T]", factory_of(proxy))


def get_key(proxy: Proxy[Any]) -> str:
    """The key under which a proxy's target is stored; never fetches it.

    Raises:
        TypeError: The proxy was not made by a store.
    """
    return _store_factory(proxy).key


def get_size(proxy: Proxy[Any]) -> int | None:
    """The size of a proxy's target as it was stored, in bytes; never fetches it.

    Returns:
        None if nobody knows: for a future's proxy, one made from a key alone, or one that no store
        made.
    """
    factory = get_factory(proxy)
    size = hints_of(proxy).size
    return factory.size if size is None and isinstance(factory, StoreFactory) else size


def evict(proxy: Proxy[Any]) -> None:
    """Removes the target of a proxy from its store; blocks until that is done.

    A resolved proxy keeps its target; unresolved ones of the same object will fail.

    Raises:
        TypeError: The proxy was not made by a store.
    """
    factory = _store_factory(proxy)
    store = factory.store
    store.evicting(factory.key).perform_blocking(store.on_blocking)


async def aevict(proxy: Proxy[Any]) -> None:
    """Async twin of `evict`."""
    factory = _store_factory(proxy)
    await factory.store.evicting(factory.key).perform()


def _store_factory(proxy: Proxy[Any]) -> StoreFactory[Any]:
    factory = get_factory(proxy)
    if not isinstance(factory, StoreFactory):
        raise TypeError(f"{proxy!r} was not made by a store, so it has no key and nothing to evict")
    return factory
