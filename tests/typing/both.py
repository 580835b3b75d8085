"""What every type checker sees, mypy with and without the plugin too: see tests/test_typing.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, reveal_type

from proxyplane import (
    Factory,
    Proxy,
    ProxyLocker,
    ProxyOr,
    RedisFactory,
    Store,
    aextract,
    aresolve,
    ato_proxy,
    extract,
    gather,
    get_factory,
    get_key,
    get_size,
    is_resolved,
    sync,
    to_proxy,
)

T = TypeVar("T")


class Table:
    rows: int = 3


def make_table() -> Table:
    return Table()


# -- where proxies come from ----------------------------------------------------------------------


async def from_store(store: Store, tables: list[Table]) -> None:
    reveal_type(await store.proxy(Table()))  # Proxy[Table]
    reveal_type(await store.proxy([1, 2], evict=True))  # Proxy[list[int]]
    reveal_type(await store.proxy_batch(tables))  # list[Proxy[Table]]
    reveal_type(await store.locked_proxy("text"))  # ProxyLocker[str]
    reveal_type(await ato_proxy({"a": 1}))  # Proxy[dict[str, int]]


def from_blocking_store(store: sync.Store, tables: list[Table]) -> None:
    reveal_type(store.proxy(Table()))  # Proxy[Table]
    reveal_type(store.proxy_batch(tables))  # list[Proxy[Table]]
    reveal_type(store.locked_proxy(b""))  # ProxyLocker[bytes]
    reveal_type(to_proxy(Table()))  # Proxy[Table]
    reveal_type(sync.to_proxy(1.5))  # Proxy[float]


def from_factory(factory: Factory[int], redis: RedisFactory[str]) -> None:
    reveal_type(Proxy(make_table))  # Proxy[Table]
    reveal_type(Proxy(Table))  # Proxy[Table]
    reveal_type(Proxy(factory))  # Proxy[int]
    reveal_type(Proxy(redis))  # Proxy[str]


# -- how their targets are had --------------------------------------------------------------------


async def awaited(p: Proxy[Table]) -> Table:
    reveal_type(await p)  # Table
    reveal_type((await p).rows)  # int
    reveal_type(await aresolve(p))  # Table
    reveal_type(await aextract(p))  # Table
    reveal_type(await asyncio.wait_for(p, timeout=1))  # Table
    reveal_type(await asyncio.shield(p))  # Table
    reveal_type(await asyncio.create_task(aresolve(p)))  # Table
    return await p


def extracted(p: Proxy[Table], lock: ProxyLocker[Table]) -> Table:
    reveal_type(extract(p))  # Table
    reveal_type(extract(p).rows)  # int
    reveal_type(sync.extract(p))  # Table
    reveal_type(lock.unlock())  # Proxy[Table]
    reveal_type(extract(lock.unlock()))  # Table
    reveal_type(get_factory(p)())  # Table
    reveal_type(get_key(p))  # str
    reveal_type(get_size(p))  # int | None
    reveal_type(is_resolved(p))  # bool
    return extract(p)


async def gathered(
    p: Proxy[Table], q: Proxy[list[str]], ps: list[Proxy[int]], maybe: ProxyOr[bytes]
) -> None:
    reveal_type(await gather(p))  # tuple[Table]
    reveal_type(await gather(p, q))  # tuple[Table, list[str]]
    reveal_type(await gather(p, aresolve(q), maybe))  # tuple[Table, list[str], bytes]
    reveal_type(await gather(p, 1, "plain", None))  # tuple[Table, int, str, None]
    reveal_type(await gather(p, 1, 2, maybe, q))  # tuple[Table, int, int, bytes, list[str]]
    reveal_type(await gather(*ps))  # tuple[int, ...]
    reveal_type(await gather(ps[0], *ps))  # tuple[int, ...]
    reveal_type(await gather(p, p, p, p, p, p))  # tuple[Table, ...]
    table, names = await gather(p, q)
    reveal_type(table)  # Table
    reveal_type(names)  # list[str]


# -- what may be a proxy --------------------------------------------------------------------------


async def maybe_awaited(x: ProxyOr[Table]) -> Table:
    if isinstance(x, Proxy):
        reveal_type(x)  # Proxy[Table]
    else:
        reveal_type(x)  # Table
    x = await x if isinstance(x, Proxy) else x
    reveal_type(x)  # Table
    return x


def maybe_extracted(x: ProxyOr[list[int]]) -> list[int]:
    return extract(x) if isinstance(x, Proxy) else x


async def maybe_generic(x: ProxyOr[T], after: Callable[[T], int]) -> T:
    (y,) = await gather(x)
    reveal_type(after(y))  # int
    return y


def takes_both(p: Proxy[bool], job: Callable[[ProxyOr[int]], str], pool: Executor) -> None:
    reveal_type(job(p))  # str
    reveal_type(job(3))  # str
    reveal_type(pool.submit(job, p))  # Future[str]


# -- a proxy of something is a proxy of what that is ----------------------------------------------


def covariant(p: Proxy[bool], takes: Callable[[Proxy[object]], str]) -> Proxy[int]:
    reveal_type(takes(p))  # str
    return p


def generic(p: Proxy[T]) -> T:
    return extract(p)


async def through_generic(p: Proxy[Table], store: Store) -> None:
    reveal_type(generic(p))  # Table

    async def stored(value: T) -> Proxy[T]:
        return await store.proxy(value)

    reveal_type(await stored(Table()))  # Proxy[Table]
    reveal_type(await (await stored(Table())))  # Table

    async def apply(function: Callable[[T], Coroutine[Any, Any, Proxy[T]]], value: T) -> T:
        return await (await function(value))

    reveal_type(await apply(stored, "text"))  # str
