"""Endpoints: objects at that of this machine, and at a peer; beside ProxyStore's endpoints.

Both through what a user has: the connector of each, bytes in and bytes out. ProxyStore's connector
puts at the endpoint of its own machine only; at a peer its client puts, which the connector uses.
Where ``proxystore[endpoints]`` is not installed, the targets are held against what its authors
published, and where they did not, there are none.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks._report import Op, Report
from benchmarks._sites import has_reference_endpoints, our_sites, reference_sites
from proxyplane import EndpointConnector

SMALL = bytes(1024)
LARGE_BYTES = 99_000_000  # the reference takes no more than 100 MB
AT_ONCE = 16
PUBLISHED_GET_MS = 1.68
PUBLISHED_PEER_MB = 8.0
"""ProxyStore's own benchmarks: a 1 KB get of its endpoint; a transfer between peers (aiortc)."""

Measure = Callable[[], dict[str, float]]
GET, PUT = "1 KB get, ms", "1 KB put, ms"
RATE = f"1 KB gets, {AT_ONCE} at a time, per second"
LARGE_GET, LARGE_READ = "99 MB get, ms", "99 MB get and read, ms"
LARGE_PUT = "99 MB put, ms"
PEER_SMALL, PEER_GET, PEER_PUT = "1 KB peer get, ms", "99 MB peer get, MB/s", "99 MB peer put, MB/s"


def run(report: Report) -> None:
    """Runs both in turns."""
    quick = report.settings.quick
    count, size = (5, 1_000_000) if quick else (300, LARGE_BYTES)
    large = np.random.default_rng(7).bytes(size)
    found: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(our_sites())
        runner = stack.enter_context(asyncio.Runner())
        ours = _Ours(count, large)
        stack.callback(lambda: runner.run(ours.aclose()))
        measures: dict[str, Measure] = {"proxyplane": lambda: runner.run(ours.measure())}
        if has_reference_endpoints():
            theirs = _Theirs(count, large, stack.enter_context(reference_sites()))
            stack.callback(theirs.close)
            measures["ProxyStore"] = theirs.measure
        else:
            print("ProxyStore's endpoints are not installed: pip install proxystore[endpoints]")
        for name, measure in measures.items():
            measure()  # with connecting, and memory that was never used
            found[name] = {}
        for _ in range(report.settings.few_rounds):
            for name, measure in measures.items():
                for what, value in measure().items():
                    found[name].setdefault(what, []).append(value)
    _tell(report, found)


def _tell(report: Report, found: dict[str, dict[str, list[float]]]) -> None:
    limits: dict[str, tuple[Op, float]] = {
        GET: ("<=", 0.4),
        LARGE_GET: ("<=", 0.3),
        PEER_GET: (">=", 25),
        PEER_PUT: (">=", 15),
    }
    published: dict[str, tuple[Op, float]] = {
        GET: ("<=", 0.4 * PUBLISHED_GET_MS),
        PEER_GET: (">=", 25 * PUBLISHED_PEER_MB),
        PEER_PUT: (">=", 15 * PUBLISHED_PEER_MB),
    }
    theirs = found.get("ProxyStore", {})
    for what, values in found["proxyplane"].items():
        label, unit = what.rsplit(", ", 1)
        if theirs:
            report.add(
                *("endpoint", f"{label}, proxyplane", unit, values),
                by=theirs[what],
                base="ProxyStore",
                target=limits.get(what),
            )
            report.add("endpoint", f"{label}, ProxyStore", unit, theirs[what])
        else:
            report.add(
                *("endpoint", f"{label}, proxyplane", unit, values), target=published.get(what)
            )


class _Ours:
    """What our connectors take."""

    def __init__(self, count: int, large: bytes) -> None:
        self._count = count
        self._large = large
        self._near, self._far = EndpointConnector("near"), EndpointConnector("far")

    async def measure(self) -> dict[str, float]:
        """One round."""
        near, far = self._near, self._far
        found: dict[str, float] = {}
        key = await near.put([SMALL])
        found[GET] = 1e3 * await _typical(lambda: near.get(key), self._count)
        keys: list[str] = []

        async def put() -> None:
            keys.append(await near.put([SMALL]))

        found[PUT] = 1e3 * await _typical(put, self._count)

        async def gets() -> None:
            for _ in range(self._count):
                await near.get(key)

        began = time.perf_counter()
        await asyncio.gather(*(gets() for _ in range(AT_ONCE)))
        found[RATE] = AT_ONCE * self._count / (time.perf_counter() - began)
        began = time.perf_counter()
        keys.append(await near.put([self._large]))
        found[LARGE_PUT] = 1e3 * (time.perf_counter() - began)
        for what in (LARGE_GET, LARGE_READ):
            began = time.perf_counter()
            body = await near.get(keys[-1])
            if what is LARGE_READ:
                _read(body)
            found[what] = 1e3 * (time.perf_counter() - began)
        there = await far.put([SMALL])
        found[PEER_SMALL] = 1e3 * await _typical(lambda: far.get(there), self._count)
        megabytes = len(self._large) / 1e6
        began = time.perf_counter()
        there_too = await far.put([self._large])
        found[PEER_PUT] = megabytes / (time.perf_counter() - began)
        began = time.perf_counter()
        body = await far.get(there_too)
        found[PEER_GET] = megabytes / (time.perf_counter() - began)
        assert body is not None
        assert len(body) == len(self._large)
        await near.evict_batch([key, *keys, there, there_too])
        return found

    async def aclose(self) -> None:
        """Closes the connectors."""
        await self._near.aclose()
        await self._far.aclose()


class _Theirs:
    """What ProxyStore's take."""

    def __init__(self, count: int, large: bytes, sites: Any) -> None:
        from proxystore.connectors.endpoint import EndpointConnector as TheirConnector

        self._count = count
        self._large = large
        self._sites = sites
        self._connector: Any = TheirConnector([sites.ids[0]], proxystore_dir=sites.home)
        self._pool = ThreadPoolExecutor(AT_ONCE)

    def measure(self) -> dict[str, float]:
        """One round."""
        from proxystore.endpoint import client

        near, found = self._connector, {}
        key = near.put(SMALL)
        found[GET] = 1e3 * _typical_call(lambda: near.get(key), self._count)
        keys: list[Any] = []
        found[PUT] = 1e3 * _typical_call(lambda: keys.append(near.put(SMALL)), self._count)

        def gets(_: int) -> None:
            for _ in range(self._count // 4 + 1):
                near.get(key)

        began = time.perf_counter()
        list(self._pool.map(gets, range(AT_ONCE)))
        found[RATE] = AT_ONCE * (self._count // 4 + 1) / (time.perf_counter() - began)
        began = time.perf_counter()
        keys.append(near.put(self._large))
        found[LARGE_PUT] = 1e3 * (time.perf_counter() - began)
        for what in (LARGE_GET, LARGE_READ):
            began = time.perf_counter()
            body = near.get(keys[-1])
            if what is LARGE_READ:
                _read(body)
            found[what] = 1e3 * (time.perf_counter() - began)
        address, far = self._sites.address, self._sites.ids[1]
        there = {"endpoint": far, "session": near._session}
        client.put(address, "small", SMALL, **there)
        found[PEER_SMALL] = 1e3 * _typical_call(
            lambda: client.get(address, "small", **there), self._count
        )
        megabytes = len(self._large) / 1e6
        began = time.perf_counter()
        client.put(address, "large", self._large, **there)
        found[PEER_PUT] = megabytes / (time.perf_counter() - began)
        began = time.perf_counter()
        body = client.get(address, "large", **there)
        found[PEER_GET] = megabytes / (time.perf_counter() - began)
        assert body is not None
        assert len(body) == len(self._large)
        for one in [key, *keys]:
            near.evict(one)
        for name in ("small", "large"):
            client.evict(address, name, **there)
        return found

    def close(self) -> None:
        """Closes the connector."""
        self._pool.shutdown()
        self._connector.close()


def _read(body: Any) -> None:
    np.frombuffer(body, np.uint8).max()


async def _typical(call: Callable[[], Any], count: int) -> float:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _typical_call(call: Callable[[], Any], count: int) -> float:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
