"""One fetch, whoever asks; and what everybody gets when it fails."""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import proxyplane as pp
import proxyplane.hints
import proxyplane.proxy
import proxyplane.sync
from proxyplane import (
    Proxy,
    aresolve,
    extract,
    gather,
    is_resolved,
)
from proxyplane.exceptions import (
    BlockingCallError,
    ProxyResolveCycleError,
    ProxyResolveError,
    ProxyResolveMissingKeyError,
)
from proxyplane.factory import Factory
from support.proxies import Reads, Slow, SlowAsync, counted_reads, run_threads

THREADS = 50


@pytest.fixture(params=["file", "redis"])
def reads(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reads]:
    """A store over a medium whose reads are counted."""
    with counted_reads(request, tmp_path) as reads:
        yield reads


class TestOneFetch:
    @pytest.mark.parametrize("make", [Slow, SlowAsync])
    def test_threads_and_loops(self, make: Any) -> None:
        """Fifty threads and two loops that want one proxy at once call its factory once."""
        factory = make()
        p = Proxy(factory)

        async def many() -> None:
            assert await gather(*[p] * 10) == ([1, 2],) * 10

        loops = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(2)]
        for thread in loops:
            thread.start()
        factory.called.wait(10)
        threading.Timer(0.05, factory.go.set).start()
        targets = run_threads(lambda: extract(p))
        for thread in loops:
            thread.join()
        assert factory.calls == 1
        assert all(target is targets[0] for target in targets)

    @pytest.mark.parametrize("copies", [1, THREADS])
    def test_threads_and_loops_over_a_store(self, reads: Reads, copies: int) -> None:
        """So does a stored object's proxy, and so do fifty copies of it: one read of the medium."""
        data = pickle.dumps(reads.store.proxy(np.arange(1000.0), populate_target=False))
        proxies = [pickle.loads(data) for _ in range(copies)]
        take = iter(proxies * (THREADS // copies) * 3)

        async def many() -> None:
            await gather(*(next(take) for _ in range(5)))

        loops = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(2)]
        for thread in loops:
            thread.start()
        sums = run_threads(lambda: next(take).sum())
        for thread in loops:
            thread.join()
        assert sums == [np.arange(1000.0).sum()] * THREADS
        assert reads.count == 1

    def test_claims(self, reads: Reads) -> None:
        """Of fifty threads with copies of a proxy that evicts, one gets the object."""
        data = pickle.dumps(reads.store.proxy([1], evict=True))
        outcomes = run_threads(lambda: extract(pickle.loads(data)))
        assert outcomes.count([1]) == 1
        losers = [type(one) for one in outcomes if one != [1]]
        assert losers == [ProxyResolveMissingKeyError] * (THREADS - 1)

    def test_one_claim_for_many_users(self, reads: Reads) -> None:
        """Fifty threads with the same proxy that evicts all use the one object it claimed."""
        p = reads.store.proxy([1], evict=True)
        outcomes = run_threads(lambda: extract(p))
        assert outcomes == [[1]] * THREADS

    async def test_copies_at_once(self, reads: Reads) -> None:
        """Copies that are awaited at once share the fetch and the object, without a cache too."""
        store = pp.Store("uncached", reads.store.connector, cache_size=0)
        key = await store.put([1])
        proxies = [store.proxy_from_key(key) for _ in range(10)]
        first, *others = await gather(*proxies)
        assert all(other is first for other in others)
        assert reads.count == 1


class TestFailure:
    def test_chained(self) -> None:
        """What a factory raises is the cause of one ProxyResolveError."""

        def broken() -> None:
            raise OSError("no such thing")

        with pytest.raises(ProxyResolveError, match="no such thing") as caught:
            str(Proxy(broken))
        assert isinstance(caught.value.cause, OSError)
        assert caught.value.__cause__ is caught.value.cause

    async def test_not_cached(self) -> None:
        """After a failure the next touch tries again."""
        answers: list[Any] = [OSError("first"), OSError("second"), [1]]

        def flaky() -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        p = Proxy(flaky)
        with pytest.raises(ProxyResolveError, match="first"):
            await asyncio.to_thread(len, p)
        with pytest.raises(ProxyResolveError, match="second"):
            await p
        assert await p == [1]

    def test_each_waiter_gets_its_own(self) -> None:
        """Those who waited for one failed fetch get errors of their own, with one cause."""
        factory = Slow(fail=OSError("broken"))
        p = Proxy(factory)
        waiters = ThreadPoolExecutor(10)
        futures = [waiters.submit(extract, p) for _ in range(10)]
        while len(_waiting()) < 9:
            time.sleep(0.001)
        factory.go.set()
        errors: list[Any] = [future.exception(10) for future in futures]
        waiters.shutdown()
        assert {type(error) for error in errors} == {ProxyResolveError}
        assert len({id(error) for error in errors}) == len(errors)
        assert {id(error.cause) for error in errors} == {id(factory.fail)}
        assert factory.calls == 1

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
    def test_base_exception_where_it_was_called(self, kind: type[BaseException]) -> None:
        """What is no Exception reaches the thread that called the factory, as it is or chained."""
        p = Proxy(_raises(kind))
        with pytest.raises((kind, ProxyResolveError)) as caught:
            len(p)
        assert kind in (type(caught.value), type(getattr(caught.value, "cause", None)))
        assert not is_resolved(p)

    @pytest.mark.parametrize("kind", [SystemExit, asyncio.CancelledError, GeneratorExit])
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_base_exception_where_it_is_awaited(self, kind: type[BaseException]) -> None:
        """It ends the wait of a task too, which neither hangs nor takes it for a cancellation."""

        async def main() -> None:
            with pytest.raises((kind, ProxyResolveError)) as caught:
                async with asyncio.timeout(10):
                    await Proxy(_raises(kind))
            if kind is asyncio.CancelledError:
                assert isinstance(caught.value, ProxyResolveError)

        asyncio.run(main())

    async def test_factory_that_awaits_itself(self) -> None:
        """A factory that awaits its own proxy is told so."""

        class Selfish(Factory[int]):
            async def acall(self) -> int:
                return await p + 1

            def __call__(self) -> int:
                raise NotImplementedError

        p: Any = Proxy(Selfish())
        with pytest.raises(ProxyResolveError):
            async with asyncio.timeout(5):
                await p

    def test_factory_that_touches_itself(self) -> None:
        """A factory that needs its own proxy's target is told so, and does not hang."""
        p: Any = Proxy(lambda: p + 1)
        with pytest.raises(ProxyResolveCycleError, match="needs its own result"):
            str(p)

    def test_cycle_over_two_proxies(self) -> None:
        """So are factories that need each other's."""
        p: Any = Proxy(lambda: q + 1)
        q: Any = Proxy(lambda: p + 1)
        with pytest.raises(ProxyResolveCycleError):
            str(p)

    def test_cycle_over_two_threads(self) -> None:
        """And so are two threads that each wait for what the other one makes."""
        meet = threading.Barrier(2)

        def make(other: str) -> Any:
            meet.wait(10)
            return proxies[other] + 1

        proxies: dict[str, Any] = {"p": Proxy(lambda: make("q")), "q": Proxy(lambda: make("p"))}
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(str, p) for p in proxies.values()]
            errors = [future.exception(30) for future in futures]
        assert all(isinstance(error, ProxyResolveError) for error in errors)
        assert any(isinstance(error, ProxyResolveCycleError) for error in errors)

    async def test_cycle_over_two_tasks(self) -> None:
        """And two tasks of one loop."""
        meet = threading.Barrier(2)

        def make(other: str) -> Any:
            meet.wait(10)
            return proxies[other] + 1

        proxies: dict[str, Any] = {"p": Proxy(lambda: make("q")), "q": Proxy(lambda: make("p"))}
        async with asyncio.timeout(10):
            errors = await asyncio.gather(*map(aresolve, proxies.values()), return_exceptions=True)
        assert all(isinstance(error, ProxyResolveError) for error in errors)

    async def test_blocking_touch_inside_of_acall(self) -> None:
        """A touch on the library's own loop thread is refused: it would wait for itself."""
        inner = Proxy(SlowAsync())

        class Careless(Factory[int]):
            async def acall(self) -> int:
                return len(inner)

            def __call__(self) -> int:
                raise NotImplementedError

        with pytest.raises(ProxyResolveError) as caught:
            await Proxy(Careless())
        assert isinstance(caught.value.cause, BlockingCallError)

    def test_not_callable(self) -> None:
        """A factory that cannot be called is a TypeError at once."""
        with pytest.raises(TypeError, match="callable factory, not str"):
            Proxy("factory")  # type: ignore[arg-type]

    def test_no_subclasses(self) -> None:
        """Proxy has no subclasses of others."""
        with pytest.raises(TypeError, match="subclass"):

            class Mine(Proxy[Any]):
                pass


def _raises(kind: type[BaseException]) -> Callable[[], Any]:
    def factory() -> Any:
        raise kind

    return factory


def _waiting() -> list[Any]:
    frames = sys._current_frames().values()
    return [frame for frame in frames if "flight" in frame.f_code.co_filename]
