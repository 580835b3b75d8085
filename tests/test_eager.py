"""Proxies that resolve in the background: which do, when, and how many at a time."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import proxyplane as pp
import proxyplane.sync
from proxyplane import Proxy, extract, gather, is_resolved, prefetch
from proxyplane.exceptions import ConfigError
from support.eager import (
    LONG_GRACE,
    Gate,
    Starter,
    fresh,
    gated_store,
    lazily,
    new_starter,
    wait_until,
)
from support.proxies import Reads, Slow, counted_reads

_names = (f"eager-{number}" for number in itertools.count())


@pytest.fixture(params=["file", "redis"])
def reads(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reads]:
    """A store over a medium whose reads are counted, by the server where there is one."""
    with counted_reads(request, tmp_path) as reads:
        yield reads


@pytest.fixture
def starter() -> Iterator[Starter]:
    with new_starter() as starter:
        yield starter


@pytest.fixture
def slow_starter() -> Iterator[Starter]:
    with new_starter(grace=LONG_GRACE) as starter:
        yield starter


@pytest.fixture
def both() -> Iterator[tuple[pp.sync.Store, Gate]]:
    with gated_store() as both:
        yield both


@pytest.fixture
def gated(both: tuple[pp.sync.Store, Gate]) -> pp.sync.Store:
    """A store behind the gate, without a cache."""
    return both[0]


@pytest.fixture
def gate(both: tuple[pp.sync.Store, Gate]) -> Gate:
    return both[1]


class TestArrival:
    def test_resolves_untouched(self, starter: Starter, reads: Reads) -> None:
        """An unpickled proxy gets its target although nobody asks for it, by one read."""
        p = fresh(reads.store.proxy(np.arange(10.0)))
        wait_until(lambda: is_resolved(p))
        assert p.sum() == 45
        assert reads.count == 1

    def test_grace(self, slow_starter: Starter, reads: Reads) -> None:
        """Nothing is read before the grace is over, and all of the batch after it."""
        copies = fresh(lazily(reads.store, [[i] for i in range(50)]))
        time.sleep(LONG_GRACE / 10)
        assert reads.count == 0
        slow_starter.settle()
        wait_until(lambda: all(map(is_resolved, copies)))
        assert copies == [[i] for i in range(50)]
        assert reads.count == 50

    def test_batch_is_one_notice(self, slow_starter: Starter, gated: pp.sync.Store) -> None:
        """Of a thousand proxies that arrive together one wakes the starter, and the I/O loop not
        at all before they start."""
        told: list[object] = []

        class Counting(queue.SimpleQueue):
            def put(self, notice: object, *args: Any) -> None:
                told.append(notice)
                super().put(notice, *args)

        slow_starter.process.notices = Counting()
        data = pickle.dumps([gated.proxy_from_key(str(i)) for i in range(1000)])
        copies = pickle.loads(data)
        assert told == [None]
        assert len(copies) == 1000

    @pytest.mark.parametrize("onwards", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_siblings_start_nothing(
        self, slow_starter: Starter, reads: Reads, onwards: Callable[[Any], Any]
    ) -> None:
        """Pickling or copying a proxy starts neither the copy nor the original."""
        p = reads.store.proxy([1], populate_target=False)
        kept = onwards(p), onwards([p])
        slow_starter.settle()
        assert reads.count == 0
        del kept

    def test_forwarding_is_free(self, slow_starter: Starter, reads: Reads) -> None:
        """Proxies that are pickled onwards in the grace are not read here, held or not."""
        copies = fresh(lazily(reads.store, [[i] for i in range(1000)]))
        time.sleep(LONG_GRACE / 10)
        data = pickle.dumps(copies)
        slow_starter.settle()
        assert reads.count == 0
        assert not any(map(is_resolved, copies))
        assert extract(pickle.loads(data)[7]) == [7]

    def test_forwarding_takes_its_time(self, slow_starter: Starter, reads: Reads) -> None:
        """The grace lasts as long as proxies keep coming, or being passed on."""
        proxies = lazily(reads.store, [[i] for i in range(20)])
        copies = []
        for p in proxies[:4]:
            copies.append(fresh(p))
            time.sleep(LONG_GRACE / 2)
        copies += fresh(proxies[4:])
        for p in copies[:4]:
            time.sleep(LONG_GRACE / 2)
            pickle.dumps(p)
        pickle.dumps(copies[4:])
        slow_starter.settle()
        assert reads.count == 0

    @pytest.mark.parametrize("touch", [extract, pp.resolve, lambda p: asyncio.run(gather(p))])
    def test_used_in_the_grace(
        self, slow_starter: Starter, reads: Reads, touch: Callable[[Any], Any]
    ) -> None:
        """A proxy that is used at once is read once, by its user."""
        p = fresh(reads.store.proxy([1]))
        touch(p)
        assert is_resolved(p)
        slow_starter.settle()
        assert reads.count == 1

    def test_dead_in_the_grace(self, slow_starter: Starter, reads: Reads) -> None:
        """One that dies in the grace is not read."""
        fresh(reads.store.proxy([1]))
        gc.collect()
        slow_starter.settle()
        assert reads.count == 0

    def test_cached(self, starter: Starter, reads: Reads) -> None:
        """An object that this process has already is delivered without a read."""
        p = reads.store.proxy([1])
        obj = reads.store.get(pp.get_key(p))
        before = reads.count
        copied = fresh(p)
        wait_until(lambda: is_resolved(copied))
        assert extract(copied) is obj
        assert reads.count == before

    def test_copies_share_a_read(self, starter: Starter, gated: pp.sync.Store, gate: Gate) -> None:
        """Copies of one proxy are resolved by one read, to one object."""
        data = pickle.dumps(gated.proxy([1]))
        copies = [pickle.loads(data) for _ in range(20)]
        gate.open()
        wait_until(lambda: all(map(is_resolved, copies)))
        assert len({id(extract(p)) for p in copies}) == 1
        assert len(gate.asked) == 1

    async def test_on_a_running_loop(self, starter: Starter, tmp_path: Path) -> None:
        """On a running loop unpickling blocks nothing, and the touch that follows warns of
        nothing once the target is there."""
        async with pp.Store(next(_names), pp.FileConnector(tmp_path)) as store:
            p = fresh(await store.proxy([1]))
            while not is_resolved(p):
                await asyncio.sleep(0.001)
            assert p[0] == 1

    def test_two_loops(self, starter: Starter, gated: pp.sync.Store, gate: Gate) -> None:
        """Two loops that await copies of a proxy join the read that has begun without them."""
        data = pickle.dumps(gated.proxy([1]))
        first, second = pickle.loads(data), pickle.loads(data)
        wait_until(lambda: gate.now)
        got: list[Any] = []

        async def main(p: Any) -> None:
            got.append(await p)

        threads = [threading.Thread(target=asyncio.run, args=(main(p),)) for p in (first, second)]
        for thread in threads:
            thread.start()
        gate.open()
        for thread in threads:
            thread.join()
        assert got == [[1], [1]]
        assert len(gate.asked) == 1

    def test_not_overwritten(self, starter: Starter) -> None:
        """What became of a target meanwhile is not undone by a read that ends late."""
        gate = Gate(pp.LocalConnector())
        with pp.sync.Store(next(_names), gate) as store:
            p = fresh(store.proxy((1,)))
            wait_until(lambda: gate.now)
            store._store._cache.put(pp.get_key(p), (1,), 1)
            p += (2,)
            gate.open()
            wait_until(lambda: not gate.now)
            starter.settle()
            assert p == (1, 2)


class TestSwitches:
    def starts(self, starter: Starter, reads: Reads, p: Proxy[Any]) -> bool:
        copied = fresh(fresh(p))
        starter.settle()
        started = bool(reads.count)
        del copied
        return started

    def test_of_the_proxy(self, starter: Starter, reads: Reads) -> None:
        """A proxy that is not eager waits for its use, also when it has been passed on."""
        store = reads.store
        key = pp.get_key(store.proxy([1]))
        for p in (
            store.proxy([1], eager=False),
            store.proxy_from_key(key, eager=False),
            store.locked_proxy([1], eager=False).unlock(),
            *store.proxy_batch([[1], [2]], eager=False),
        ):
            assert not self.starts(starter, reads, p)
        assert fresh(store.proxy([1], eager=False)) == [1]

    @pytest.mark.parametrize("of_proxy", [None, True])
    def test_of_the_store(self, starter: Starter, tmp_path: Path, of_proxy: bool | None) -> None:
        """A store says what its proxies do that are not told themselves, in other processes too."""
        url = pp.Store(next(_names), pp.FileConnector(tmp_path), eager=False).config().to_url()
        assert ";eager=0" in url
        with pp.sync.Store.from_url(url) as store:
            p = fresh(store.proxy([1], eager=of_proxy))
            starter.settle()
            if of_proxy:
                wait_until(lambda: is_resolved(p))
            assert is_resolved(p) == bool(of_proxy)

    def test_default_is_not_in_the_url(self, tmp_path: Path) -> None:
        """The URL of a store that is eager, as stores are, does not say so."""
        store = pp.Store(next(_names), pp.FileConnector(tmp_path))
        assert "eager=" not in store.config().to_url()

    def test_of_the_process(self, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
        """With PROXYPLANE_EAGER=0 nothing starts by itself, but what is asked for does."""
        with new_starter() as starter:
            monkeypatch.setenv("PROXYPLANE_EAGER", "0")
            p = fresh(reads.store.proxy([1], eager=True))
            assert not starter.process.alert
            assert not starter.process.arrived
            prefetch([p])
            wait_until(lambda: is_resolved(p))

    def test_wrong_value(self, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
        """A variable with a value that it cannot have is named by the error."""
        data = pickle.dumps(reads.store.proxy([1]))
        for name in ("PROXYPLANE_EAGER", "PROXYPLANE_EAGER_FLIGHTS", "PROXYPLANE_EAGER_BYTES"):
            with new_starter(), monkeypatch.context() as patch:
                patch.setenv(name, "many")
                with pytest.raises(ConfigError, match=name):
                    pickle.loads(data)

    def test_other_factories(self, slow_starter: Starter) -> None:
        """Only the proxies of stores start by themselves."""
        p: Proxy[Any] = Proxy(_refuse)
        copied = fresh(p)
        slow_starter.settle()
        assert not is_resolved(copied)
        assert not slow_starter.process.arrived

    def test_evict(self, starter: Starter, reads: Reads) -> None:
        """A proxy that evicts is not prefetched: the first use claims, the second is too late."""
        data = pickle.dumps(reads.store.proxy([1], evict=True))
        first, second = pickle.loads(data), pickle.loads(data)
        prefetch([first, second])
        starter.settle()
        assert reads.count == 0
        assert reads.store.exists(pp.get_key(first))
        assert second == [1]
        with pytest.raises(pp.exceptions.ProxyResolveMissingKeyError):
            len(first)

    def test_nested(self, starter: Starter, reads: Reads) -> None:
        """Proxies inside of a stored object do not start by themselves, whoever decodes it."""
        inner = lazily(reads.store, [[i] for i in range(10)])
        outer = fresh(reads.store.proxy(inner, populate_target=False))
        wait_until(lambda: is_resolved(outer))
        touched = extract(fresh(reads.store.proxy([*inner], populate_target=False)))
        starter.settle()
        assert not any(map(is_resolved, [*outer, *touched]))
        assert reads.count == 2
        prefetch(outer)
        wait_until(lambda: all(map(is_resolved, outer)))


def _refuse() -> None:
    raise AssertionError


class TestWindow:
    def test_count(self, gated: pp.sync.Store, gate: Gate) -> None:
        """No more are fetched at a time than the window has places, and in order."""
        proxies = lazily(gated, [[i] for i in range(20)])
        with new_starter(flights=3) as starter:
            copies = fresh(proxies)
            wait_until(lambda: gate.now == 3)
            starter.settle()
            assert gate.now == 3
            gate.open()
            wait_until(lambda: all(map(is_resolved, copies)))
        assert gate.most == 3
        assert gate.asked == list(map(pp.get_key, proxies))

    def test_bytes(self, gated: pp.sync.Store, gate: Gate) -> None:
        """Nor more bytes, and one that is larger than the window goes alone."""
        small = lazily(gated, [bytes(1000)] * 6)
        large = lazily(gated, [bytes(10_000)])
        keys = list(map(pp.get_key, [*small[:3], *large, *small[3:]]))
        with new_starter(nbytes=3000) as starter:
            copies = fresh([*small[:3], *large, *small[3:]])
            wait_until(lambda: gate.now == 2)
            for done in range(1, 7):
                starter.settle()
                flying = gate.asked[done - 1 :]
                assert keys[3] not in flying or flying == [keys[3]]
                gate.open(keys[done - 1])
                wait_until(lambda: is_resolved(copies[done - 1]))  # noqa: B023
                wait_until(lambda: len(gate.asked) > done)  # noqa: B023
            gate.open()
            wait_until(lambda: all(map(is_resolved, copies)))
        assert gate.most == 2

    def test_unknown_size(self, gated: pp.sync.Store, gate: Gate) -> None:
        """An object of unknown size counts for a megabyte."""
        keys = gated.put_batch([[i] for i in range(8)])
        with new_starter(nbytes=3 << 20) as starter:
            copies = fresh([gated.proxy_from_key(key) for key in keys])
            wait_until(lambda: gate.now == 3)
            starter.settle()
            assert gate.now == 3
            gate.open()
            wait_until(lambda: all(map(is_resolved, copies)))
        assert gate.most == 3

    @pytest.mark.parametrize("use", [extract, lambda p: asyncio.run(pp.aresolve(p))])
    def test_use_bypasses(
        self, gated: pp.sync.Store, gate: Gate, use: Callable[[Any], Any]
    ) -> None:
        """Who uses a proxy does not wait for a place, and takes it out of the queue."""
        proxies = lazily(gated, [[0], [1], [2]])
        with new_starter(flights=1) as starter:
            copies = fresh(proxies)
            wait_until(lambda: gate.now)
            gate.open(pp.get_key(proxies[2]))
            assert use(copies[2]) == [2]
            assert not is_resolved(copies[0])
            gate.open()
            wait_until(lambda: all(map(is_resolved, copies)))
            starter.settle()
        assert sorted(gate.asked) == sorted(map(pp.get_key, proxies))

    def test_failures_free_their_places(self, gated: pp.sync.Store, gate: Gate) -> None:
        """Fetches that fail make room for those behind them."""
        missing = [gated.proxy_from_key(f"missing-{i}") for i in range(5)]
        gate.open()
        with new_starter(flights=1):
            copies = fresh([*missing, gated.proxy([1])])
            wait_until(lambda: is_resolved(copies[-1]))

    def test_queue_of_the_dead(self, gated: pp.sync.Store, gate: Gate) -> None:
        """Proxies that die while a fetch holds the only place leave nothing in the queue."""
        data = pickle.dumps([gated.proxy_from_key(str(i)) for i in range(1000)])
        with new_starter(flights=1) as starter:
            held = fresh([gated.proxy([1]), gated.proxy([2])])  # in the air, and the next
            wait_until(lambda: gate.now)
            for _ in range(10):
                copies = pickle.loads(data)
                starter.settle()
                copies.clear()
            assert len(starter.window.queue) < 5000
            gate.open()
            wait_until(lambda: all(map(is_resolved, held)))
            starter.settle()
            assert not starter.window.queue
        assert len(gate.asked) == 2

    def test_futures_hold_no_place(self, tmp_path: Path) -> None:
        """Proxies of futures that wait leave the window to others; set, they resolve."""
        with (
            pp.sync.Store(next(_names), pp.FileConnector(tmp_path)) as store,
            new_starter(flights=1) as starter,
        ):
            futures = [store.future() for _ in range(5)]
            waiting = fresh([future.proxy() for future in futures])
            starter.settle()
            needed = fresh(store.proxy([1]))
            wait_until(lambda: is_resolved(needed))
            assert not any(map(is_resolved, waiting))
            for i, future in enumerate(futures):
                future.set_result([i])
            wait_until(lambda: all(map(is_resolved, waiting)))
            assert waiting == [[i] for i in range(5)]


class TestPrefetch:
    def test_in_order(self, gated: pp.sync.Store, gate: Gate) -> None:
        """Proxies start in the order in which they were given, in the places that there are."""
        proxies = lazily(gated, [[i] for i in range(6)])
        with new_starter(flights=2) as starter:
            prefetch(p for p in reversed(proxies))
            wait_until(lambda: gate.now == 2)
            starter.settle()
            assert gate.now == 2
            gate.open()
            wait_until(lambda: all(map(is_resolved, proxies)))
        assert gate.asked == list(map(pp.get_key, reversed(proxies)))

    def test_is_not_undone_by_pickling(self, gated: pp.sync.Store, gate: Gate) -> None:
        """What was asked for is fetched though it is passed on, whether it was eager or not."""
        with new_starter(grace=LONG_GRACE):
            proxies = [*lazily(gated, [[1]]), *fresh(lazily(gated, [[2]]))]
            prefetch(proxies)
            pickle.dumps(proxies)
            gate.open()
            wait_until(lambda: all(map(is_resolved, proxies)))

    def test_whatever_else_there_is(self, starter: Starter, gated: pp.sync.Store) -> None:
        """What is no proxy, or resolved, is passed over, and other factories start at once."""
        factory = Slow()
        p = Proxy(factory)
        prefetch([1, None, "text", gated.proxy([1]), p])
        factory.go.set()
        wait_until(lambda: is_resolved(p))
        assert factory.calls == 1

    def test_twice(self, starter: Starter, gated: pp.sync.Store, gate: Gate) -> None:
        """Asking again changes nothing."""
        (p,) = lazily(gated, [[1]])
        for _ in range(3):
            prefetch([p])
            starter.settle()
        gate.open()
        wait_until(lambda: is_resolved(p))
        assert len(gate.asked) == 1
