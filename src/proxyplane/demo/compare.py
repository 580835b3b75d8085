"""The job, done both ways in turn: each round is timed, and every result checked."""

from __future__ import annotations

import asyncio
import pickle
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxyplane._gather import gather
from proxyplane.demo.data import Dataset, Item
from proxyplane.demo.pool import Pool
from proxyplane.demo.work import Answer, analyse, same
from proxyplane.proxy import get_key
from proxyplane.sync import Store

# Smaller objects drown in what Python takes for the message around them.
_TRACEABLE_BYTES = 1_000_000
_WATCH_SECONDS = 0.001

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass
class Way:
    """One way of sending the objects, and what it cost.

    Attributes:
        name: What went through the queue: "objects" or "proxies".
        seconds: Of each round, from the first object sent to the last result received, and
            everything tidied up.
        queue_bytes: What went through the pipe of the task queue, in the largest round.
        sender_copies: Memory that sending one object took in the producer, besides the object, in
            objects; None if the objects are too small to tell.
        worker_copies: Memory that receiving it took in the worker, likewise.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    queue_bytes: int = 0
    sender_copies: float | None = None
    worker_copies: float | None = None

    @property
    def median(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)


@dataclass
class Awaited:
    """What the async side did.

    Attributes:
        seconds: From the first ``await`` until all objects were there.
        stall: The longest time, in seconds, for which the event loop ran nothing else.
    """

    seconds: float
    stall: float


@dataclass
class Comparison:
    """Everything that the demo found out.

    Attributes:
        objects: The objects themselves went through the queue.
        proxies: Proxies of them did.
        direct_seconds: The same work in the producer alone, with nothing sent.
        awaited: All objects awaited at once; None if that was not reached.
        checked: Results that were compared with those of the producer.
        wrong: What was found wrong, a sentence each; empty if all is well.
    """

    objects: Way = field(default_factory=lambda: Way("objects"))
    proxies: Way = field(default_factory=lambda: Way("proxies"))
    direct_seconds: float = 0.0
    awaited: Awaited | None = None
    checked: int = 0
    wrong: list[str] = field(default_factory=list)


class Comparer:
    """Does the job both ways.

    Args:
        dataset: What to send.
        store: Where the objects of the proxies go.
        progress: Told what is going on.
    """

    def __init__(self, dataset: Dataset, store: Store, progress: Progress) -> None:
        self._items = dataset.items
        self._store = store
        self._progress = progress
        self._expected: list[Answer] = []
        self._keys: list[str] = []
        self.found = Comparison()

    def compute_directly(self) -> None:
        """Computes, in this process, what every result must be."""
        started = time.perf_counter()
        for number, item in enumerate(self._items):
            self._progress("computing what is expected", number, len(self._items))
            self._expected.append(analyse(item.array))
        self.found.direct_seconds = time.perf_counter() - started

    def trace(self, pool: Pool) -> None:
        """Measures the memory that one object takes on its way, with a pool that traces.

        Not in the timed rounds, because it slows them down.
        """
        largest = max(range(len(self._items)), key=lambda i: self._items[i].array.nbytes)
        item = self._items[largest]
        if item.array.nbytes < _TRACEABLE_BYTES:
            return
        for way, payloads in self._both():
            for _ in range(2):  # the first time includes what is imported or set up once
                tracemalloc.start()
                try:
                    (done,) = pool.run(payloads([item]), 1)
                    _, peak = tracemalloc.get_traced_memory()
                finally:
                    tracemalloc.stop()
                self._tidy()
                self._check(way.name, largest, done.answer, done.error)
            way.sender_copies = peak / item.array.nbytes
            way.worker_copies = done.peak / item.array.nbytes

    def compare(self, pool: Pool, rounds: int) -> None:
        """Does the job in rounds, each way in turn first.

        A round that brings a wrong result is the last.
        """
        for number in range(rounds):
            ways = self._both()
            for way, payloads in ways if number % 2 == 0 else ways[::-1]:
                if self.found.wrong:
                    return
                label = f"round {number + 1} of {rounds}, {way.name}"
                self._round(label, way, payloads, pool)

    def await_all(self) -> None:
        """Stores all objects once more and awaits copies of their proxies, all at once."""
        self._progress("awaiting", 0, 0)
        proxies = list(self._proxies(self._items))
        # A copy knows where its object is, and does not have it.
        copies = pickle.loads(pickle.dumps(proxies))
        arrays, self.found.awaited = asyncio.run(_await_all(copies))
        self._tidy()
        for item, array in zip(self._items, arrays, strict=True):
            self.found.checked += 1
            if array is item.array or array.tobytes() != item.array.tobytes():
                self.found.wrong.append(f"{item.name} (awaited) is not what was stored")

    def _both(self) -> list[tuple[Way, Callable[[list[Item]], Iterator[Any]]]]:
        return [(self.found.objects, self._objects), (self.found.proxies, self._proxies)]

    def _objects(self, items: list[Item]) -> Iterator[Any]:
        for item in items:
            yield item.array

    def _proxies(self, items: list[Item]) -> Iterator[Any]:
        for item in items:
            proxy = self._store.proxy(item.array, populate_target=False)
            self._keys.append(get_key(proxy))
            yield proxy

    def _round(
        self,
        label: str,
        way: Way,
        payloads: Callable[[list[Item]], Iterator[Any]],
        pool: Pool,
    ) -> None:
        count = len(self._items)
        written = pool.queue.written
        results = []
        self._progress(label, 0, count)
        started = time.perf_counter()
        for done in pool.run(payloads(self._items), count):
            results.append(done)
            self._progress(label, len(results), count)
        self._tidy()
        way.seconds.append(time.perf_counter() - started)
        way.queue_bytes = max(way.queue_bytes, pool.queue.written - written)
        for done in results:
            self._check(way.name, done.index, done.answer, done.error)

    def _tidy(self) -> None:
        keys, self._keys = self._keys, []
        if keys:
            self._store.evict_batch(keys)

    def _check(self, way: str, index: int, answer: Answer | None, error: str) -> None:
        self.found.checked += 1
        name = self._items[index].name
        if answer is None:
            self.found.wrong.append(f"{name} ({way}): {error}")
        elif not same(answer, self._expected[index]):
            self.found.wrong.append(
                f"{name} ({way}): the worker's result differs from the producer's"
            )


async def _await_all(proxies: list[Any]) -> tuple[Sequence[Any], Awaited]:
    """Awaits proxies while another task of the loop watches how long it is kept waiting."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            # Without a pause it would itself keep the interpreter from the thread that fetches.
            await asyncio.sleep(_WATCH_SECONDS)
            longest = max(longest, time.perf_counter() - before - _WATCH_SECONDS)

    watcher = asyncio.ensure_future(watch())
    await asyncio.sleep(0)  # it watches from here on
    started = time.perf_counter()
    arrays = await gather(*proxies)
    seconds = time.perf_counter() - started
    await asyncio.sleep(2 * _WATCH_SECONDS)  # until it has seen the last stall
    watcher.cancel()
    return arrays, Awaited(seconds, longest)
