"""`gather`: many proxies at once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import proxyplane as pp


async def value(result: Any, started: list[Any] | None = None) -> Any:
    if started is not None:
        started.append(result)
    await asyncio.sleep(0)
    return result


async def test_order_and_kinds() -> None:
    """Targets come in order; awaitables are awaited, and other values passed through."""
    resolved = pp.Proxy(lambda: "never called", target=[3])
    mixed = await pp.gather(pp.Proxy(lambda: [1]), value(2), resolved, 4, None, pp.Proxy(lambda: 6))
    assert ([1], 2, [3], 4, None, 6) == mixed
    assert type(mixed[0]) is list


async def test_nothing() -> None:
    """Nothing gathered is an empty tuple."""
    assert () == await pp.gather()


async def test_one_proxy_twice() -> None:
    """A proxy given twice is fetched once."""
    calls: list[int] = []
    proxy = pp.Proxy(lambda: calls.append(1) or [1])
    first, second = await pp.gather(proxy, proxy)
    assert first is second
    assert [1] == calls


async def test_at_once() -> None:
    """All are fetched at the same time: each factory waits for the others."""
    barrier = threading.Barrier(4, timeout=30)
    proxies = [pp.Proxy(barrier.wait) for _ in range(4)]
    assert [0, 1, 2, 3] == sorted(await pp.gather(*proxies))


async def test_first_failure_ends_the_others() -> None:
    """The first failure is raised, once the others have been cancelled and have ended."""
    ended = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(pp.ProxyResolveError) as caught:
        await pp.gather(slow(), pp.Proxy(fail))
    assert isinstance(caught.value.cause, ValueError)
    assert [True] == ended


async def test_cancelled_before_it_began() -> None:
    """A gather that is cancelled before its first step leaves nothing un-awaited."""
    task = asyncio.create_task(pp.gather(value(1), value(2), pp.Proxy(lambda: 3)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
