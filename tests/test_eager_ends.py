"""What ends a resolution in the background: nobody who wants it, an error, a cycle."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import proxyplane as pp
import proxyplane.sync
from proxyplane import extract, is_resolved, prefetch
from proxyplane._runtime.window import Interest
from proxyplane.exceptions import (
    ConnectorLostError,
    ProxyResolveCycleError,
    ProxyResolveError,
    ProxyResolveMissingKeyError,
)
from support.eager import (
    Gate,
    Starter,
    fresh,
    gated_store,
    lazily,
    new_starter,
    wait_until,
)
from support.waiting import nobody_waits


@pytest.fixture(autouse=True)
def starter() -> Iterator[Starter]:
    with new_starter(flights=4) as starter:
        yield starter


@pytest.fixture
def both() -> Iterator[tuple[pp.sync.Store, Gate]]:
    with gated_store() as both:
        yield both


@pytest.fixture
def store(both: tuple[pp.sync.Store, Gate]) -> pp.sync.Store:
    """A store behind the gate, without a cache."""
    return both[0]


@pytest.fixture
def gate(both: tuple[pp.sync.Store, Gate]) -> Gate:
    return both[1]


class TestNobodyWants:
    def test_dead(self, store: pp.sync.Store, gate: Gate) -> None:
        """The fetch of a proxy that dies is cancelled, and its place in the window free."""
        copies = fresh(lazily(store, [[i] for i in range(4)]))
        wait_until(lambda: gate.now == 4)
        other = fresh(store.proxy([5]))
        keys = list(map(pp.get_key, copies))
        del copies
        wait_until(lambda: sorted(gate.cancelled) == sorted(keys))
        gate.open()
        wait_until(lambda: is_resolved(other))

    def test_dead_in_a_cycle(self, store: pp.sync.Store, gate: Gate) -> None:
        """So is that of one that the garbage collector finds."""
        holder: list[Any] = [fresh(store.proxy([1]))]
        holder.append(holder)
        wait_until(lambda: gate.now)
        del holder
        assert not gate.cancelled
        gc.collect()
        wait_until(lambda: gate.cancelled)

    def test_dead_by_a_collection_anywhere(self, store: pp.sync.Store, gate: Gate) -> None:
        """Also where the collector runs while this thread holds the library's own lock."""
        from proxyplane._runtime import flights

        holder: list[Any] = [fresh(store.proxy([1]))]
        holder.append(holder)
        wait_until(lambda: gate.now)
        del holder
        with flights._process.lock:
            gc.collect()
        wait_until(lambda: gate.cancelled)

    def test_passed_on(self, store: pp.sync.Store, gate: Gate) -> None:
        """So is that of one that is pickled onwards, which can still be used here."""
        p = fresh(store.proxy([1]))
        wait_until(lambda: gate.now)
        pickle.dumps(p)
        wait_until(lambda: gate.cancelled)
        gate.open()
        assert p == [1]

    def test_prefetched(self, store: pp.sync.Store, gate: Gate) -> None:
        """So is that of one that was prefetched and dies."""
        proxies = lazily(store, [[i] for i in range(6)])
        prefetch(proxies)
        wait_until(lambda: gate.now == 4)
        proxies.clear()
        wait_until(lambda: len(gate.cancelled) == 4)
        assert len(gate.asked) == 4

    def test_a_copy_lives(self, starter: Starter, store: pp.sync.Store, gate: Gate) -> None:
        """A fetch goes on as long as one copy of the proxy lives."""
        data = pickle.dumps(store.proxy([1]))
        copies = [pickle.loads(data) for _ in range(5)]
        wait_until(lambda: gate.now)
        starter.settle()
        del copies[1:]
        starter.settle()
        gate.open()
        wait_until(lambda: is_resolved(copies[0]))
        assert (1, []) == (len(gate.asked), gate.cancelled)

    @pytest.mark.parametrize("leaves", [False, True])
    def test_somebody_waits(
        self, starter: Starter, store: pp.sync.Store, gate: Gate, leaves: bool
    ) -> None:
        """A fetch that somebody waits for goes on without the background, until they leave too."""
        data = pickle.dumps(store.proxy([1]))
        behind, awaited = pickle.loads(data), pickle.loads(data)
        wait_until(lambda: gate.now)

        async def main() -> None:
            nonlocal behind, awaited
            task = asyncio.create_task(pp.aresolve(awaited))
            await asyncio.sleep(0.01)
            pickle.dumps(awaited)
            del behind
            await asyncio.to_thread(starter.settle)
            assert not gate.cancelled
            if leaves:
                task.cancel()
                await asyncio.wait([task])
                await asyncio.to_thread(wait_until, lambda: gate.cancelled)
            else:
                gate.open()
                assert await task == [1]

        asyncio.run(main())
        assert len(gate.asked) == 1

    def test_waiter_leaves(self, starter: Starter, store: pp.sync.Store, gate: Gate) -> None:
        """A waiter that is cancelled leaves the fetch to the background, and the proxy mortal."""
        held = [fresh(store.proxy([1]))]
        wait_until(lambda: gate.now)

        async def main() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(held[0], 0.01)

        asyncio.run(main())
        starter.settle()
        assert not gate.cancelled
        ref = weakref.ref(held.pop())
        assert ref() is None
        wait_until(lambda: gate.cancelled)
        assert len(gate.asked) == 1

    def test_future(self) -> None:
        """Nobody waits on for a future whose proxies are gone."""
        connector = pp.LocalConnector()
        with pp.sync.Store("eager-future", connector) as store:
            future = store.future()
            copies = [fresh(future.proxy()) for _ in range(3)]
            medium: Any = connector._medium
            wait_until(lambda: medium.waiters.names())
            copies.clear()
            wait_until(lambda: nobody_waits(medium.waiters))

    def test_many_die_while_they_start(
        self, starter: Starter, store: pp.sync.Store, gate: Gate
    ) -> None:
        """Whenever proxies die, on their way or in the air, no place is lost and no fetch stays."""
        data = pickle.dumps(lazily(store, [[i] for i in range(10)]))

        def churn() -> None:
            for i in range(100):
                copies = pickle.loads(data)
                if i % 3 == 0:
                    starter.settle()
                if i % 2:
                    pickle.dumps(copies)
                del copies

        threads = [threading.Thread(target=churn) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        starter.settle()
        wait_until(lambda: not gate.now)
        starter.settle()
        window = starter.window
        assert (window.flights, window.nbytes) == (0, 0)
        gate.open()
        last = pickle.loads(data)
        wait_until(lambda: all(map(is_resolved, last)))


class Target:
    """Can be referred to weakly."""


class TestMemory:
    @pytest.mark.parametrize(
        "use",
        [
            lambda p: wait_until(lambda: is_resolved(p)),
            extract,
            lambda p: asyncio.run(pp.aresolve(p)),
        ],
        ids=["untouched", "touched", "awaited"],
    )
    def test_target_goes_with_its_proxy(
        self, starter: Starter, store: pp.sync.Store, gate: Gate, use: Callable[[Any], Any]
    ) -> None:
        """A fetched object is freed with the last of its proxies, without the collector."""
        gate.open()
        gc.collect()
        gc.disable()
        try:
            held = [fresh(store.proxy(Target(), populate_target=False))]
            use(held[0])
            ref = weakref.ref(extract(held[0]))
            held.clear()
            starter.settle()
            wait_until(lambda: ref() is None)
        finally:
            gc.enable()


class TestErrors:
    def test_surfaces_and_is_tried_again(
        self,
        starter: Starter,
        store: pp.sync.Store,
        gate: Gate,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A fetch that fails in the background is silent; the touch tries again, and raises."""
        caplog.set_level(logging.DEBUG)
        gate.open()
        gate.fail = [ConnectorLostError("first"), ConnectorLostError("second")]
        p = fresh(store.proxy([1]))
        wait_until(lambda: len(gate.fail) == 1)
        starter.settle()
        gc.collect()
        assert [] == caplog.records
        with pytest.raises(ProxyResolveError, match="second") as caught:
            len(p)
        assert isinstance(caught.value.__cause__, ConnectorLostError)
        assert p == [1]
        assert [] == caplog.records

    def test_reaches_who_waits(self, store: pp.sync.Store, gate: Gate) -> None:
        """Who waits for a fetch that the background began gets its error."""
        p = fresh(store.proxy([1]))
        wait_until(lambda: gate.now)
        gate.fail = [ConnectorLostError("broken")]
        threading.Timer(0.05, gate.open).start()
        with pytest.raises(ProxyResolveError, match="broken"):
            len(p)
        assert p == [1]
        assert len(gate.asked) == 2

    def test_missing(self, starter: Starter, store: pp.sync.Store, gate: Gate) -> None:
        """A key that was missing may be there at the touch."""
        gate.open()
        p = fresh(store.proxy_from_key("later"))
        wait_until(lambda: gate.asked)
        starter.settle()
        with pytest.raises(ProxyResolveMissingKeyError):
            len(p)
        store.put([1], key="later")
        assert p == [1]

    def test_does_not_decode(self, starter: Starter, store: pp.sync.Store, gate: Gate) -> None:
        """An object that does not decode fails at the touch too."""
        gate.open()
        p = fresh(store.proxy(Broken()))
        wait_until(lambda: gate.asked)
        starter.settle()
        with pytest.raises(ProxyResolveError, match="no such luck"):
            str(p)

    def test_proxy_is_mortal(self, starter: Starter, store: pp.sync.Store, gate: Gate) -> None:
        """A proxy whose fetch failed, and all that was noted of it, is freed when it is dropped,
        without the collector."""
        gc.collect()
        before = interests()
        gate.open()
        p = fresh(store.proxy_from_key("missing"))
        wait_until(lambda: gate.asked and not gate.now)
        starter.settle()
        ref = weakref.ref(p)
        gc.disable()
        try:
            del p
            assert ref() is None
            starter.settle()
            assert interests() <= before  # one of an earlier test may have gone meanwhile
        finally:
            gc.enable()


def interests() -> int:
    return sum(type(one) is Interest for one in gc.get_objects())


class Broken:
    def __reduce__(self) -> Any:
        return _fail, ()


def _fail() -> Any:
    raise ValueError("no such luck")


class Touches:
    """Needs another object to be decoded."""

    def __init__(self, url: str, key: str) -> None:
        self.needs = url, key

    def __reduce__(self) -> Any:
        return _touch, self.needs


def _touch(url: str, key: str) -> Any:
    decoders.append(threading.current_thread().name)
    with contextlib.suppress(threading.BrokenBarrierError):
        together.wait(20)
    return [pp.sync.Store.from_url(url).proxy_from_key(key)[0]]


together = threading.Barrier(2)
decoders: list[str] = []


@pytest.mark.parametrize("use", [extract, lambda p: asyncio.run(pp.aresolve(p))])
def test_cycle_of_decoders(
    tmp_path: Path,
    starter: Starter,
    use: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two objects that are decoded at once, and need each other, fail and do not hang; and the
    one who uses them is told why."""
    monkeypatch.setenv("PROXYPLANE_ON_BLOCKING", "allow")  # a decoder on the loop that awaits
    together.reset()
    decoders.clear()
    url = pp.FileConnector(tmp_path).url + "#eager-cycle"
    with pp.sync.Store.from_url(url) as store:
        store.put(Touches(url, "b"), key="a")
        store.put(Touches(url, "a"), key="b")
        copies = fresh([store.proxy_from_key("a"), store.proxy_from_key("b")])
        wait_until(lambda: len(decoders) == 2 and not together.n_waiting)
        assert {name.startswith("proxyplane-decode") for name in decoders} == {True}
        wait_until(lambda: not starter.window.flights)
        together.abort()
        for p in copies:
            with pytest.raises(ProxyResolveError) as caught:
                use(p)
            error: BaseException | None = caught.value
            while not isinstance(error, ProxyResolveCycleError):
                assert error is not None
                error = error.__cause__
