"""Objects that need each other to be resolved: whoever would close the circle is told so."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import proxyplane as pp
from proxyplane import Factory, Proxy, aresolve, extract, gather
from proxyplane._runtime.flights import _process
from proxyplane.exceptions import ProxyResolveCycleError, ProxyResolveError

pytestmark = pytest.mark.timeout(120)  # a cycle that is not found hangs


class Calls(Factory[Any]):
    """Does what it was given, on whatever loop it is awaited or called."""

    def __init__(self, acall: Callable[[], Awaitable[Any]]) -> None:
        self._acall = acall

    def __call__(self) -> Any:
        return asyncio.run(self.acall())

    async def acall(self) -> Any:
        return await self._acall()


async def all_of(*proxies: Any) -> list[Any]:
    """What becomes of each of them, resolved at the same time."""
    async with asyncio.timeout(60):
        return await asyncio.gather(*map(aresolve, proxies), return_exceptions=True)


def refused(error: Any) -> bool:
    """Whether a cycle is at the root of an error."""
    assert isinstance(error, ProxyResolveError), error
    while error is not None and not isinstance(error, ProxyResolveCycleError):
        error = error.__cause__
    return error is not None


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Every flight ends, and nobody is noted down as waiting."""
    flights, waits = set(_process.flights), set(_process.waits)  # of tests before
    yield
    assert set(_process.flights) <= flights
    assert set(_process.waits) <= waits


class TestCycles:
    @pytest.mark.parametrize("length", [1, 2, 5])
    async def test_awaited_at_once(self, length: int) -> None:
        """Async factories that await each other's proxies in a ring fail and do not hang, though
        each began by itself."""
        all_began = asyncio.Barrier(length)

        async def need(next_one: int) -> Any:
            async with asyncio.timeout(60):
                await all_began.wait()
            return await proxies[next_one % length]

        proxies: list[Any] = [Proxy(Calls(lambda i=i: need(i + 1))) for i in range(length)]
        assert all(map(refused, await all_of(*proxies)))

    async def test_through_threads(self) -> None:
        """Also where they touch them in threads of their own."""
        both_began = threading.Barrier(2)

        def touch(other: str) -> Any:
            both_began.wait(30)
            return extract(proxies[other])

        proxies: dict[str, Any] = {
            "a": Proxy(Calls(lambda: asyncio.to_thread(touch, "b"))),
            "b": Proxy(Calls(lambda: asyncio.to_thread(touch, "a"))),
        }
        assert all(map(refused, await all_of(*proxies.values())))

    def test_through_loops_of_their_own(self) -> None:
        """Also plain factories that each run a loop and await there."""
        both_began = threading.Barrier(2)

        def run(other: str) -> Any:
            both_began.wait(30)
            return asyncio.run(all_of(proxies[other]))[0]

        proxies: dict[str, Any] = {"a": Proxy(lambda: run("b")), "b": Proxy(lambda: run("a"))}
        with ThreadPoolExecutor(2) as pool:
            results = [
                one.result(60) for one in [pool.submit(extract, p) for p in proxies.values()]
            ]
        assert any(map(refused, results))

    async def test_through_a_decoder(self, tmp_path: Path) -> None:
        """Also an async factory that awaits a stored object whose decoder touches its proxy."""
        async with pp.Store("cycle", pp.FileConnector(tmp_path), cache_size=0) as store:
            key = await store.put(NeedsTheOuter())
            outer: Any = Proxy(Calls(lambda: aresolve(store.proxy_from_key(key))))
            needed[:] = [outer]
            (error,) = await all_of(outer)
            needed.clear()
        assert refused(error)


needed: list[Any] = []


class NeedsTheOuter:
    """Needs `needed` to be decoded."""

    def __reduce__(self) -> Any:
        return _touch_needed, ()


def _touch_needed() -> Any:
    return [extract(p) for p in needed]


class TestNoCycle:
    async def test_two_ways_to_one(self) -> None:
        """What is needed along two ways is no cycle."""
        d: Any = Proxy(Calls(lambda: asyncio.sleep(0.01, 1)))
        b: Any = Proxy(Calls(lambda: aresolve(d)))
        c: Any = Proxy(Calls(lambda: aresolve(d)))
        a: Any = Proxy(Calls(lambda: gather(b, c, d)))
        assert await all_of(a, b, c, d) == [(1, 1, 1), 1, 1, 1]

    async def test_who_gave_up_waits_for_nothing(self) -> None:
        """A factory that has given up waiting for another one may be awaited by it."""
        gave_up = asyncio.Event()

        async def impatient() -> str:
            waiting = asyncio.ensure_future(aresolve(b))
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.wait([waiting])
            gave_up.set()
            return "a"

        async def patient() -> Any:
            async with asyncio.timeout(30):
                await gave_up.wait()
            return await a

        a: Any = Proxy(Calls(impatient))
        b: Any = Proxy(Calls(patient))
        assert await all_of(a, b) == ["a", "a"]


def who_needs_whom(n: int) -> st.SearchStrategy[list[tuple[set[int], str, int]]]:
    """What each of `n` needs, how it gets it, and how often it lets others go on before."""
    ways = st.sampled_from(["awaits", "touches", "runs a loop"])
    one = st.tuples(st.sets(st.integers(0, n - 1), max_size=3), ways, st.integers(0, 3))
    return st.lists(one, min_size=n, max_size=n)


@given(graph=st.integers(1, 6).flatmap(who_needs_whom))
@settings(max_examples=100)
def test_exactly_those_that_cannot_end_fail(graph: list[tuple[set[int], str, int]]) -> None:
    """Whatever needs what, however and in whatever order it gets there: what comes to a cycle
    fails, and everything else is resolved."""

    async def need(i: int) -> int:
        needs, _, pauses = graph[i]
        for _ in range(pauses):
            await asyncio.sleep(0)
        await gather(*(proxies[one] for one in sorted(needs)))
        return i

    def touch(i: int) -> int:
        needs, _, pauses = graph[i]
        time.sleep(pauses / 10_000)
        for one in sorted(needs):
            extract(proxies[one])
        return i

    makers: dict[str, Callable[[int], Any]] = {
        "awaits": lambda i: Calls(lambda: need(i)),
        "touches": lambda i: lambda: touch(i),
        "runs a loop": lambda i: lambda: asyncio.run(need(i)),
    }
    proxies: list[Any] = [Proxy(makers[way](i)) for i, (_, way, _) in enumerate(graph)]
    results = asyncio.run(all_of(*proxies))
    for i, result in enumerate(results):
        if reaches_a_cycle(i, [needs for needs, _, _ in graph], ()):
            assert refused(result)
        else:
            assert result == i


def reaches_a_cycle(i: int, needs: list[set[int]], path: tuple[int, ...]) -> bool:
    return i in path or any(reaches_a_cycle(one, needs, (*path, i)) for one in needs[i])
