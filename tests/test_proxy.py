"""Proxies: awaited, gathered, resolved, locked, and gone when nobody has them."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import pickle
import threading
import time
import weakref
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest

import proxyplane as pp
import proxyplane.hints
import proxyplane.proxy
import proxyplane.sync
from proxyplane import (
    Proxy,
    ProxyLocker,
    aextract,
    aresolve,
    extract,
    gather,
    get_factory,
    get_key,
    get_size,
    is_resolved,
    resolve,
    resolve_async,
)
from proxyplane.exceptions import (
    ProxyResolveError,
    ProxyResolveMissingKeyError,
)
from proxyplane.factory import Factory
from proxyplane.serialization import encode, frames_size
from support.proxies import Reads, Slow, SlowAsync, counted_reads, five


@pytest.fixture(params=["file", "redis"])
def reads(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reads]:
    """A store over a medium whose reads are counted."""
    with counted_reads(request, tmp_path) as reads:
        yield reads


class TestAwait:
    async def test_gives_the_target(self) -> None:
        """Awaiting a proxy gives the target itself, and leaves the proxy resolved."""
        p = Proxy(five)
        target = await p
        assert type(target) is int
        assert is_resolved(p)
        assert await p == 5
        assert await aresolve(p) == 5
        assert await aextract(p) == 5

    async def test_never_forwards_await(self) -> None:
        """A target that can be awaited is given, not awaited."""
        future = asyncio.get_running_loop().create_future()
        assert await Proxy(lambda: future) is future

    async def test_does_not_stall_the_loop(self) -> None:
        """A factory that blocks leaves the loop free while it is awaited."""
        factory = Slow()
        task = asyncio.ensure_future(aresolve(Proxy(factory)))
        while not factory.called.is_set():
            await asyncio.sleep(0.001)
        factory.go.set()
        assert await task == [1, 2]

    async def test_cancelling_one_of_several(self) -> None:
        """One who no longer waits takes nothing from the others."""
        factory = SlowAsync()
        p = Proxy(factory)
        first, second = (asyncio.ensure_future(aresolve(p)) for _ in range(2))
        while not factory.called.is_set():
            await asyncio.sleep(0.001)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        factory.go.set()
        assert await second == [1, 2]
        assert (factory.calls, factory.cancelled) == (1, 0)

    async def test_cancelling_the_last(self) -> None:
        """When nobody waits any more, the fetch is cancelled; the next who wants it starts anew."""
        factory = SlowAsync()
        p = Proxy(factory)
        tasks = [asyncio.ensure_future(aresolve(p)) for _ in range(3)]
        while not factory.called.is_set():
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        while not factory.cancelled:
            await asyncio.sleep(0.001)
        assert not is_resolved(p)
        factory.go.set()
        assert await p == [1, 2]
        assert factory.calls == 2

    async def test_timeout(self) -> None:
        """`asyncio.timeout` ends the wait, and the proxy can be awaited again."""
        factory = SlowAsync()
        p = Proxy(factory)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await p
        factory.go.set()
        assert await p == [1, 2]

    @pytest.mark.allow_blocking
    @pytest.mark.filterwarnings("ignore::proxyplane.exceptions.BlockingResolveWarning")
    @pytest.mark.parametrize("make", [Slow, SlowAsync])
    async def test_touch_while_a_task_awaits(self, make: Any) -> None:
        """A touch on the loop ends although a task of that very loop awaits the same proxy."""
        factory = make()
        p = Proxy(factory)
        task = asyncio.ensure_future(aresolve(p))
        await asyncio.sleep(0)
        threading.Timer(0.05, factory.go.set).start()
        assert len(p) == 2
        assert await task == [1, 2]
        assert factory.calls == 1

    @pytest.mark.allow_blocking
    @pytest.mark.filterwarnings("ignore::proxyplane.exceptions.BlockingResolveWarning")
    async def test_touch_while_decoding_is_on_its_way(self, reads: Reads) -> None:
        """So it does at whatever step the other task is, decoding on a worker thread included."""
        big = list(range(300_000))  # takes long to decode, so a worker does it
        for turns in range(12):
            p = reads.store.proxy(big, populate_target=False)
            task = asyncio.ensure_future(aresolve(p))
            for _ in range(turns):
                await asyncio.sleep(0.002 * turns)
            assert len(p) == len(big)
            assert await task == big

    async def test_context_variables(self) -> None:
        """A factory sees the context variables of who wants its object."""
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
        variable.set("here")
        assert await Proxy(variable.get) == "here"

        class Async(Factory[str]):
            def __call__(self) -> str:
                raise NotImplementedError

            async def acall(self) -> str:
                return variable.get()

        assert await Proxy(Async()) == "here"


class TestGather:
    async def test_targets_in_order(self) -> None:
        """Targets come in order; what is neither a proxy nor awaitable is passed through."""

        async def coroutine() -> str:
            return "c"

        assert await gather() == ()
        proxies = Proxy(lambda: [1]), Proxy(lambda: {2})
        assert await gather(*proxies, 3, coroutine()) == ([1], {2}, 3, "c")

    async def test_at_once(self) -> None:
        """All are fetched at the same time."""
        factories = [SlowAsync() for _ in range(3)]
        task = asyncio.ensure_future(_gather(*map(Proxy, factories)))
        while not all(factory.called.is_set() for factory in factories):
            await asyncio.sleep(0.001)
        for factory in factories:
            factory.go.set()
        assert await task == ([1, 2],) * 3

    async def test_failure_cancels_the_others(self) -> None:
        """The first failure is raised when the others have ended."""
        other = SlowAsync()

        async def fail() -> None:
            while not other.called.is_set():
                await asyncio.sleep(0.001)
            raise KeyError("x")

        with pytest.raises(KeyError):
            await gather(Proxy(other), fail())
        while not other.cancelled:
            await asyncio.sleep(0.001)


async def _gather(*values: Awaitable[Any]) -> tuple[Any, ...]:
    return await gather(*values)


class TestHelpers:
    def test_resolve(self) -> None:
        """`resolve` fetches and returns nothing; `extract` gives the target."""
        target = [1]
        p = Proxy(lambda: target)
        assert not is_resolved(p)
        resolve(p)
        assert is_resolved(p)
        assert extract(p) is target

    def test_target_at_hand(self) -> None:
        """A proxy that is given its target never calls its factory, and nor does its pickle."""
        p = Proxy(five, target=5)
        assert is_resolved(p)
        copied = pickle.loads(pickle.dumps(p))
        assert not is_resolved(copied)
        assert isinstance(copied, int)
        assert not is_resolved(copied)

    def test_target_none(self) -> None:
        """None is a target like any other."""
        assert is_resolved(Proxy(lambda: None, target=None))
        p = Proxy(lambda: None)
        assert extract(p) is None
        assert is_resolved(p)
        assert not p

    def test_resolve_async(self) -> None:
        """`resolve_async` returns at once, and the touch that follows joins its fetch."""
        factory = SlowAsync()
        p = Proxy(factory)
        resolve_async(p)
        assert not is_resolved(p)
        factory.called.wait(10)
        factory.go.set()
        assert len(p) == 2
        assert factory.calls == 1
        resolve_async(p)
        assert factory.calls == 1

    @pytest.mark.filterwarnings("error")
    def test_resolve_async_that_fails(self) -> None:
        """A failure behind the back is met by the first use, which tries again."""
        calls = []

        def broken() -> None:
            calls.append(1)
            raise OSError("gone")

        p = Proxy(broken)
        resolve_async(p)
        while not calls:
            time.sleep(0.001)
        with pytest.raises(ProxyResolveError, match="gone"):
            str(p)

    def test_only_of_proxies(self) -> None:
        """The helpers refuse what is no proxy."""
        helpers = (
            extract,
            resolve,
            resolve_async,
            get_factory,
            get_key,
            get_size,
            pp.evict,
            ProxyLocker,
        )
        for helper in (*helpers, is_resolved):
            with pytest.raises(TypeError, match="Proxy"):
                helper([1])  # type: ignore[operator]

    async def test_only_of_proxies_async(self) -> None:
        """And so do their async twins."""
        for helper in (aresolve, aextract, pp.aevict):
            with pytest.raises(TypeError, match="expected a Proxy, got list"):
                await helper([1])  # type: ignore[operator]

    def test_get_factory(self) -> None:
        """The factory is the one that was given."""
        assert get_factory(Proxy(five)) is five

    @pytest.mark.usefixtures("lazy")
    def test_get_size(self, reads: Reads) -> None:
        """The size is what the store holds, told without a fetch; None where nobody knows."""
        key = reads.store.put(b"x" * 1000)
        p = pickle.loads(pickle.dumps(reads.store.proxy(b"x" * 1000)))
        assert get_size(p) == frames_size(encode(b"x" * 1000))
        assert not is_resolved(p)
        known = pp.StoreFactory("local://a/1/b#s", "key", size=7)
        unknown = Proxy(five), reads.store.proxy_from_key(key)
        assert [get_size(one) for one in (Proxy(known), *unknown)] == [7, None, None]

    def test_not_of_a_store(self) -> None:
        """A proxy that no store made has no key and nothing to evict."""
        for helper in (get_key, pp.evict):
            with pytest.raises(TypeError, match="not made by a store"):
                helper(Proxy(five))  # type: ignore[operator]

    @pytest.mark.usefixtures("lazy")
    def test_evict(self, reads: Reads) -> None:
        """An evicted object is gone for unresolved proxies; resolved ones keep theirs."""
        p = reads.store.proxy([1])
        other = pickle.loads(pickle.dumps(p))
        assert get_key(p) == get_key(other)
        pp.evict(other)
        assert p == [1]
        with pytest.raises(ProxyResolveMissingKeyError) as caught:
            len(other)
        assert caught.value.key == get_key(p)
        pp.evict(other)

    async def test_to_proxy_without_target(self, reads: Reads) -> None:
        """`to_proxy` and `ato_proxy` keep the object, or let it go, as `Store.proxy` does."""
        made = [
            await asyncio.to_thread(pp.to_proxy, [1], store=reads.store, populate_target=keep)
            for keep in (True, False)
        ]
        made += [
            await pp.ato_proxy([1], store=reads.store, populate_target=keep)
            for keep in (True, False)
        ]
        assert [is_resolved(one) for one in made] == [True, False, True, False]
        assert [await one for one in made] == [[1]] * 4

    async def test_aevict(self, reads: Reads) -> None:
        """`aevict` does so without blocking."""
        p = await asyncio.to_thread(reads.store.proxy, [1], populate_target=False)
        await pp.aevict(p)
        with pytest.raises(ProxyResolveMissingKeyError):
            await p

    def test_locker(self) -> None:
        """A locked proxy cannot be used, travels, and comes out unresolved."""
        factory = Slow()
        factory.go.set()
        box = ProxyLocker(Proxy(five))
        for copied in (copy.copy(box), copy.deepcopy(box), pickle.loads(pickle.dumps(box))):
            with pytest.raises(TypeError):
                copied + 1
            assert "unresolved" in repr(copied)
            assert not is_resolved(copied.unlock())
            assert copied.unlock() + 1 == 6


class TestMemory:
    def test_cycles_are_collected(self) -> None:
        """A factory that holds its proxy is collected with it."""

        class Holder:
            def __call__(self) -> str:
                return "x"

        holder: Any = Holder()
        holder.proxy = p = Proxy(holder)
        assert p == "x"
        gone = weakref.ref(holder)
        del holder, p
        gc.collect()
        assert gone() is None

    async def test_target_goes_with_its_proxies(self) -> None:
        """Nothing of a resolution keeps the target alive, however it was resolved."""

        class Thing:
            pass

        for use in (extract, aresolve):
            p = Proxy(Thing)
            result = await asyncio.to_thread(extract, p) if use is extract else await aresolve(p)
            gone = weakref.ref(result)
            del p, result
            for _ in range(100):
                gc.collect()
                if gone() is None:
                    break
                await asyncio.sleep(0.01)
            assert gone() is None

    def test_failed_target_leaves_nothing(self) -> None:
        """Nor does a failure keep its proxy."""

        class Broken:
            def __call__(self) -> None:
                raise OSError("x")

        factory = Broken()
        gone = weakref.ref(factory)
        with pytest.raises(ProxyResolveError):
            str(Proxy(factory))
        del factory
        gc.collect()
        assert gone() is None

    def test_classes_go_with_their_types(self) -> None:
        """The class made for a type goes when that type does."""

        def use() -> weakref.ref[type]:
            class Local:
                pass

            p = Proxy(Local)
            extract(p)
            return weakref.ref(type(p))

        gone = use()
        gc.collect()  # the type, and with it what keeps its class
        gc.collect()
        assert gone() is None

    def test_weak_references(self) -> None:
        """A weak reference to a proxy is one to the proxy."""
        p = Proxy(five)
        reference = weakref.ref(p)
        assert reference() is p
        del p
        gc.collect()
        assert reference() is None
