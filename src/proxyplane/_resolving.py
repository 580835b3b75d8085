"""How a proxy gets its target: by a touch, by an await, or in the background."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from proxyplane._runtime import eager, flights
from proxyplane._runtime.blocking import about_to_block
from proxyplane._runtime.flight import Flight
from proxyplane._slots import (
    factory_of,
    get_interest,
    get_target,
    is_resolved,
    require_proxy,
    set_interest,
)
from proxyplane.cache import MISSING
from proxyplane.exceptions import ProxyPlaneError, ProxyResolveError
from proxyplane.factory import CallableSource, StoreFactory, ahead_of

if TYPE_CHECKING:
    from proxyplane.proxy import Proxy

T = TypeVar("T")


def _source(proxy: Proxy[Any]) -> Any:
    """Where from `proxy` is resolved now; the background does not begin with it any more."""
    interest = get_interest(proxy)
    if interest is not None:
        interest.source = None
    factory = factory_of(proxy)
    return factory if isinstance(factory, StoreFactory) else CallableSource(factory)


def _join(proxy: Proxy[Any], source: Any) -> Flight | None:
    key = source.flight_key
    return flights.join(
        id(proxy) if key is None else key,
        source,
        partial(is_resolved, proxy),
        proxy.__proxy_accept__,
    )


def _join_ahead(source: Any) -> Flight | None:
    """What the background is fetching for a strict proxy, which is used already.

    It waits for that before it looks for the latest object: if it is that, it comes once.
    """
    if not isinstance(source, StoreFactory) or not source.strict or source.evict or source.ahead:
        return None
    return flights.join_under_way(ahead_of(source).flight_key, source.take_ahead)


def touch(proxy: Proxy[T]) -> T:
    """Resolves `proxy`, blocking this thread, and returns its target."""
    source = _source(proxy)
    try:
        source.prepare()
    except Exception as error:
        raise ProxyResolveError(f"could not resolve {source}: {error}", cause=error) from error
    target = source.cached()
    if target is not MISSING:
        flights.hand_over(proxy.__proxy_accept__, target)
        return cast(T, get_target(proxy))
    about_to_block(lambda: f"touching {proxy!r}", source.on_blocking)
    ahead = _join_ahead(source)
    if ahead is not None:
        try:
            with contextlib.suppress(ProxyPlaneError):  # what follows tells
                ahead.wait_blocking()
        finally:
            ahead.leave()
    flight = _join(proxy, source)
    if flight is None:
        return cast(T, get_target(proxy))
    try:
        return cast(T, flight.wait_blocking())
    finally:
        flight.leave()


async def aresolve(proxy: Proxy[T]) -> T:
    """Resolves a proxy without blocking the running loop, and returns its target.

    Args:
        proxy: A proxy.

    Returns:
        The target itself, not a proxy.

    Raises:
        ProxyResolveError: The target could not be had; what went wrong is its `cause`.
        ProxyResolveMissingKeyError: The store does not hold the object.
    """
    require_proxy(proxy)
    if is_resolved(proxy):
        return cast(T, get_target(proxy))
    source = _source(proxy)
    source.refuse_cycle()
    target = source.cached()
    if target is not MISSING:
        flights.hand_over(proxy.__proxy_accept__, target)
        return cast(T, get_target(proxy))
    ahead = _join_ahead(source)
    if ahead is not None:
        try:
            with contextlib.suppress(ProxyPlaneError):
                await ahead.wait()
        finally:
            ahead.leave()
    flight = _join(proxy, source)
    if flight is None:
        return cast(T, get_target(proxy))
    try:
        return cast(T, await flight.wait())
    finally:
        flight.leave()


def resolve(proxy: Proxy[Any]) -> None:
    """Resolves a proxy; blocks until its target is here. Blocking twin of `aresolve`.

    Raises:
        ProxyResolveError: The target could not be had; what went wrong is its `cause`.
    """
    require_proxy(proxy)
    _ = proxy.__proxy_target__


def resolve_async(proxy: Proxy[Any]) -> None:
    """Starts to resolve a proxy in the background and returns at once.

    Does nothing if the proxy is resolved. A strict proxy is not resolved by it: its first use looks
    whether what was fetched is still the latest. If it fails, the first use of the proxy tries
    again and raises.
    """
    require_proxy(proxy)
    if is_resolved(proxy):
        return
    factory = factory_of(proxy)
    if isinstance(factory, StoreFactory) and factory.strict and not factory.evict:
        start_behind(proxy, factory)
        return
    flight = _join(proxy, _source(proxy))
    if flight is not None:
        flight.start()
        flight.leave()


def start_behind(proxy: Proxy[Any], factory: StoreFactory[Any]) -> None:
    """Has the background begin with a proxy as soon as it has a place."""
    interest = get_interest(proxy)
    if interest is not None and (interest.source or interest.flying):
        interest.asked = True
    else:
        set_interest(proxy, eager.ask(proxy, ahead_of(factory)))


def extract(proxy: Proxy[T]) -> T:
    """The target of a proxy, the object itself; blocks until it is here.

    Raises:
        ProxyResolveError: The target could not be had; what went wrong is its `cause`.
    """
    require_proxy(proxy)
    return cast(T, proxy.__proxy_target__)


async def aextract(proxy: Proxy[T]) -> T:
    """Async twin of `extract`; the same as `aresolve` and as ``await proxy``."""
    return await aresolve(proxy)
