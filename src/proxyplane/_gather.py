"""Many proxies at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from proxyplane._resolving import start_behind
from proxyplane.factory import StoreFactory
from proxyplane.proxy import (
    Proxy,
    aresolve,
    extract,
    get_factory,
    is_resolved,
    resolve_async,
)

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")

if TYPE_CHECKING:
    from typing import TypeAlias

    # Nothing is a tuple in a tuple without end. It is here because in a union that is recursive,
    # and in no other, mypy takes ``Awaitable[T]`` before a bare ``T``.
    _Endless: TypeAlias = "tuple[_Endless]"
    _Value: TypeAlias = Awaitable[T] | T | _Endless


@overload
async def gather(value: _Value[T1], /) -> tuple[T1]: ...
@overload
async def gather(v1: _Value[T1], v2: _Value[T2], /) -> tuple[T1, T2]: ...
@overload
async def gather(v1: _Value[T1], v2: _Value[T2], v3: _Value[T3], /) -> tuple[T1, T2, T3]: ...
@overload
async def gather(
    v1: _Value[T1], v2: _Value[T2], v3: _Value[T3], v4: _Value[T4], /
) -> tuple[T1, T2, T3, T4]: ...
@overload
async def gather(
    v1: _Value[T1], v2: _Value[T2], v3: _Value[T3], v4: _Value[T4], v5: _Value[T5], /
) -> tuple[T1, T2, T3, T4, T5]: ...
@overload
async def gather(*values: _Value[T]) -> tuple[T, ...]: ...


async def gather(*values: Any) -> Any:
    """Resolves many proxies at once and returns their targets in order.

    A tuple, in which type checkers see the type of each target, up to five of them.

    What is neither a proxy nor awaitable is returned as it is. The first failure cancels the
    others, waits for their end and is raised.

    `asyncio.gather` will not do: it hashes its arguments, and refuses a proxy of an unhashable
    target.
    """
    results: list[Any] = list(values)
    # Awaitables become tasks as they are: a coroutine around one that is cancelled before its
    # first step would leave it never awaited.
    tasks: dict[int, asyncio.Future[Any]] = {}
    for i, value in enumerate(values):
        if issubclass(type(value), Proxy):
            if not is_resolved(value):
                tasks[i] = asyncio.ensure_future(aresolve(value))
            else:
                results[i] = extract(value)
        elif isinstance(value, Awaitable):
            tasks[i] = asyncio.ensure_future(value)
    try:
        for i, result in zip(tasks, await asyncio.gather(*tasks.values()), strict=True):
            results[i] = result
    except BaseException:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        raise
    return tuple(results)


def prefetch(proxies: Iterable[Any]) -> None:
    """Starts to resolve proxies in the background, in order, and returns at once.

    No more are fetched at a time than the window of the process allows; whoever touches or awaits
    one of them meanwhile does not wait for its turn. A proxy that dies before its turn is not
    fetched. If a fetch fails, the first use of that proxy tries again and raises.

    Proxies that evict are left alone, since only a use claims their object. A strict proxy is not
    resolved by it: its first use looks whether what was fetched is still the latest. What is
    resolved, or no proxy, is passed over.

    Args:
        proxies: What will be needed soon, first things first.
    """
    for proxy in proxies:
        if issubclass(type(proxy), Proxy) and not is_resolved(proxy):
            _start(proxy)


def _start(proxy: Proxy[Any]) -> None:
    factory = get_factory(proxy)
    if not isinstance(factory, StoreFactory):
        resolve_async(proxy)  # what its factory costs is not known, and it has threads of its own
    elif not factory.evict:
        start_behind(proxy, factory)
