"""Proxies: resolved once whoever asks, failing loudly, small when they travel."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import dill
import numpy as np
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
    is_resolved,
    resolve,
    resolve_async,
)
from proxyplane._server import EmbeddedServer
from proxyplane.exceptions import (
    BlockingCallError,
    ProxyResolveCycleError,
    ProxyResolveError,
    ProxyResolveMissingKeyError,
)
from proxyplane.factory import Factory
from support.servers import admin

THREADS = 50


class Slow:
    """A plain factory that takes its time and counts its calls."""

    def __init__(self, fail: BaseException | None = None) -> None:
        self.calls = 0
        self.fail = fail
        self.called = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> list[int]:
        self.calls += 1
        self.called.set()
        self.go.wait(10)
        if self.fail is not None:
            raise self.fail
        return [1, 2]


class SlowAsync(Factory[list[int]]):
    """A factory of its own async kind."""

    def __init__(self) -> None:
        self.calls = self.cancelled = 0
        self.called = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> list[int]:
        raise AssertionError("only awaited")

    async def acall(self) -> list[int]:
        self.calls += 1
        self.called.set()
        try:
            while not self.go.is_set():
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [1, 2]


def five() -> int:
    return 5


def run_threads(function: Callable[[], object], count: int = THREADS) -> list[Any]:
    """Calls it in many threads at once and returns what they returned or raised."""
    barrier = threading.Barrier(count)

    def work(_: int) -> object:
        barrier.wait(30)
        try:
            return function()
        except BaseException as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


class CountingFiles(pp.FileConnector):
    """Counts what is read of the medium."""

    reads = 0

    def get_sync(self, key: str, *, size: int | None = None) -> Any:
        type(self).reads += 1
        return super().get_sync(key, size=size)

    async def get(self, key: str, *, size: int | None = None) -> Any:
        type(self).reads += 1
        return await super().get(key, size=size)


class Reads:
    """A stored object with a counter of how often the medium gave it out."""

    def __init__(self, store: pp.sync.Store, count: Callable[[], int]) -> None:
        self.store = store
        self._count = count
        self._before = count()

    @property
    def count(self) -> int:
        return self._count() - self._before


@pytest.fixture(params=["file", "redis"])
def reads(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reads]:
    """A store over a medium whose reads are counted."""
    if request.param == "file":
        CountingFiles.reads = 0
        with pp.sync.Store("reads", CountingFiles(tmp_path)) as store:
            yield Reads(store, lambda: CountingFiles.reads)
        return
    server: EmbeddedServer = request.getfixturevalue("own_redis_server")()
    with pp.sync.Store("reads", server.url) as store, admin(server) as client:

        def count() -> int:
            stats = client.info("commandstats")
            return sum(
                stats.get(f"cmdstat_{name}", {}).get("calls", 0)
                for name in ("get", "getrange", "mget", "getdel")
            )

        yield Reads(store, count)


class TestOneFetch:
    @pytest.mark.parametrize("make", [Slow, SlowAsync])
    def test_threads_and_loops(self, make: Any) -> None:
        """Fifty threads and two loops that want one proxy at once call its factory once."""
        factory = make()
        p = Proxy(factory)

        async def many() -> None:
            assert await gather(*[p] * 10) == [[1, 2]] * 10

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

        assert await gather() == []
        proxies = Proxy(lambda: [1]), Proxy(lambda: {2})
        assert await gather(*proxies, 3, coroutine()) == [[1], {2}, 3, "c"]

    async def test_at_once(self) -> None:
        """All are fetched at the same time."""
        factories = [SlowAsync() for _ in range(3)]
        task = asyncio.ensure_future(_gather(*map(Proxy, factories)))
        while not all(factory.called.is_set() for factory in factories):
            await asyncio.sleep(0.001)
        for factory in factories:
            factory.go.set()
        assert await task == [[1, 2]] * 3

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


async def _gather(*values: Awaitable[Any]) -> list[Any]:
    return await gather(*values)


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
    return [frame for frame in frames if "flights" in frame.f_code.co_filename]


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
        helpers = extract, resolve, resolve_async, get_factory, get_key, pp.evict, ProxyLocker
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

    def test_not_of_a_store(self) -> None:
        """A proxy that no store made has no key and nothing to evict."""
        for helper in (get_key, pp.evict):
            with pytest.raises(TypeError, match="not made by a store"):
                helper(Proxy(five))  # type: ignore[operator]

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


class TestTravel:
    @pytest.mark.parametrize("target", [[1], "text", np.ones(3), 2**40, ProxyResolveError("x")])
    def test_size(self, target: Any) -> None:
        """A pickled proxy is below 250 bytes with a URL of 120, and each further one below 60."""
        url = "redis://somebody@redis-17.cache.example.org:6379/0?namespace=".ljust(120, "n")
        assert len(url) == 120
        store = pp.Store("results", pp.RedisConnector(url))
        key = "0123456789abcdef" * 2
        proxies = [
            pp.proxy.make_proxy(
                store.factory(key[i:] + key[:i], False, 12_345_678),
                pp.hints.Hints.of(target, 2000),
            )
            for i in range(11)
        ]
        one = len(pickle.dumps(proxies[0]))
        many = len(pickle.dumps(proxies))
        assert one < 250
        assert (many - one) / 10 < 60
        assert not any(map(is_resolved, proxies))

    def test_no_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy carries the name of the password's variable, and not the password."""
        monkeypatch.setenv("SECRET_NAME", "hunter2")
        url = "redis://localhost:1/0?password_env=SECRET_NAME"
        store = pp.Store("s", pp.RedisConnector(url))
        p = store.proxy_from_key("k")
        assert b"SECRET_NAME" in pickle.dumps(p)
        for text in (pickle.dumps(p), repr(p).encode(), repr(get_factory(p)).encode()):
            assert b"hunter2" not in text

    @pytest.mark.parametrize("module", [pickle, cloudpickle, dill])
    def test_protocols(self, module: Any, reads: Reads) -> None:
        """Every pickler and protocol sends factory and hints, never the target."""
        big = np.arange(10_000)
        for p in (reads.store.proxy(big), reads.store.proxy(big, populate_target=False)):
            resolved = is_resolved(p)
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                data = module.dumps(p, protocol)
                assert len(data) < 600
                received = module.loads(data)
                assert not is_resolved(received)
                assert isinstance(received, np.ndarray)
                assert not is_resolved(received)
                assert is_resolved(p) == resolved
            assert (received == big).all()

    @pytest.mark.parametrize("module", [pickle, cloudpickle, dill])
    def test_plain_factory(self, module: Any) -> None:
        """A proxy of a plain callable travels as that callable."""
        for p in (Proxy(five), Proxy(five, target=5)):
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                received = module.loads(module.dumps(p, protocol))
                assert not is_resolved(received)
                assert received + 1 == 6

    def test_lambda_by_cloudpickle(self) -> None:
        """cloudpickle sends a proxy of a lambda, without calling it."""
        calls: list[int] = []
        data = cloudpickle.dumps(Proxy(lambda: calls.append(1)))
        assert calls == []
        assert not is_resolved(pickle.loads(data))

    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
    def test_copies(self, duplicate: Callable[[Any], Any], reads: Reads) -> None:
        """A copy is an unresolved sibling; making it reads nothing."""
        for p in (reads.store.proxy([1]), reads.store.proxy([1], populate_target=False)):
            sibling = duplicate(p)
            assert type(sibling).__mro__[1] is Proxy
            assert not is_resolved(sibling)
            assert get_key(sibling) == get_key(p)
            assert isinstance(sibling, list)
        assert reads.count == 0
        assert sibling == [1]

    def test_copies_inside_of_others(self) -> None:
        """A deep copy of what holds a proxy holds a sibling, which calls nothing."""
        calls: list[int] = []
        p = Proxy(lambda: calls.append(1))
        held = copy.deepcopy({"p": [p]})
        assert not is_resolved(held["p"][0])
        assert calls == []

    def test_in_another_process(self, tmp_path: Path) -> None:
        """A proxy of a class of the script travels to a process that has not imported it."""
        with pp.sync.Store("travel", pp.FileConnector(tmp_path)) as store:
            p = store.proxy(np.arange(3.0))
            path = tmp_path / "p.pickle"
            path.write_bytes(pickle.dumps(p))
            code = textwrap.dedent(f"""
                import pickle, sys
                p = pickle.loads(open({str(path)!r}, "rb").read())
                assert "numpy" not in sys.modules
                assert "unresolved" in repr(p) and "ndarray" in repr(p), repr(p)
                assert "numpy" not in sys.modules
                assert not isinstance(p, int)
                from proxyplane import is_resolved
                assert not is_resolved(p)
                assert p.sum() == 3
                import numpy
                assert isinstance(p, numpy.ndarray)
            """)
            subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=30)

    def test_class_of_the_script(self, tmp_path: Path) -> None:
        """An object of a class of `__main__` is known by it in that script and its workers."""
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent("""
                import multiprocessing, sys
                import proxyplane as pp
                from proxyplane.sync import Store

                class Mine:
                    def __init__(self, x):
                        self.x = x

                def work(p):
                    assert isinstance(p, Mine)
                    return p.x

                if __name__ == "__main__":
                    with Store("s", pp.FileConnector(sys.argv[1])) as store:
                        p = store.proxy(Mine(5), populate_target=False)
                        assert isinstance(p, Mine) and not pp.is_resolved(p)
                        for method in ("spawn", "forkserver"):
                            with multiprocessing.get_context(method).Pool(1) as pool:
                                assert pool.map(work, [p]) == [5]
            """)
        )
        command = [sys.executable, "-W", "error", str(script), str(tmp_path / "data")]
        subprocess.run(command, check=True, timeout=60)


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
