"""How much of the time of fetches disappears behind computing, and what it costs the computing.

*Numpy*: a loop of steps; each uses three arrays of 10 MB that were told to resolve in the
background one step before, and computes for about 50 ms with the interpreter lock released (a
matrix product; BLAS has one thread). Compared with the same loop with no fetches, and with the
fetches alone: ``hidden = 1 - (with - without) / alone``. The server shares the two cores.

*Pure Python*: a thread computes and never lets go of the interpreter lock by itself, while one
object is fetched behind it. It looks often whether the object is there. How long that takes is
compared with the same when nothing computes, and the pace of the computing with its pace alone.
"""

from __future__ import annotations

import pickle
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import redis

import proxyplane
from benchmarks._report import Op, Report
from benchmarks.harness import has_reference, redis_server, reference_store
from proxyplane.sync import Store

MB = 1_000_000
SIDE = 1000  # of the matrices: about 50 ms
EACH = 3  # arrays for each step, which take about half as long


class Side:
    """One library, over one medium."""

    def __init__(
        self,
        make: Callable[[Any], Any],
        resolve_async: Callable[[Any], object],
        is_there: Callable[[Any], bool],
    ) -> None:
        self._make = make
        self.resolve_async = resolve_async
        self.is_there = is_there

    def arrivals(self, count: int, size: int) -> list[bytes]:
        """Pickled proxies of arrays of so many bytes, each of an object of its own."""
        return [pickle.dumps(self._make(np.full(size, i, np.uint8))) for i in range(count)]


def sides(place: str) -> dict[str, Side]:
    """Ours and the reference's."""
    store = Store(f"overlap-{uuid.uuid4().hex}", place, cache_size=0, register=True)

    def make(array: Any) -> Any:
        return store.proxy(array, populate_target=False)

    found = {"proxyplane": Side(make, proxyplane.resolve_async, proxyplane.is_resolved)}
    if has_reference():
        from proxystore.store.utils import resolve_async

        theirs = reference_store("overlap", place)

        def is_there(proxy: Any) -> bool:
            future = proxy.__proxy_factory__._obj_future
            return future is not None and future.done()

        found["ProxyStore"] = Side(theirs.proxy, resolve_async, is_there)
    return found


def compute_numpy(matrix: Any) -> None:
    """One step of computing."""
    matrix @ matrix


def loop_alone(steps: int, matrix: Any) -> float:
    """Seconds of the computing."""
    began = time.perf_counter()
    for _ in range(steps):
        compute_numpy(matrix)
    return time.perf_counter() - began


def start(side: Side, arrivals: list[bytes]) -> list[Any]:
    """Proxies that arrive and begin to resolve."""
    proxies = [pickle.loads(arrival) for arrival in arrivals]
    for proxy in proxies:
        side.resolve_async(proxy)
    return proxies


def use(proxies: list[Any]) -> None:
    """Waits for what is not there yet."""
    for proxy in proxies:
        assert proxy[-1] >= 0


def fetches_alone(side: Side, arrivals: list[list[bytes]]) -> float:
    """Seconds of the fetches, one step's after another's."""
    began = time.perf_counter()
    for step in arrivals:
        use(start(side, step))
    return time.perf_counter() - began


def loop_with_fetches(side: Side, arrivals: list[list[bytes]], matrix: Any) -> float:
    """Seconds of both, one step ahead."""
    began = time.perf_counter()
    ahead = start(side, arrivals[0])
    for following in [*arrivals[1:], []]:
        compute_numpy(matrix)
        now, ahead = ahead, start(side, following)
        use(now)
    return time.perf_counter() - began


def fetch_behind_python(side: Side, arrival: bytes) -> tuple[float, float]:
    """Seconds until the object is there, and pieces of computing done in each second of it."""
    pieces = 0
    began = time.perf_counter()
    proxy = pickle.loads(arrival)
    side.resolve_async(proxy)
    while not side.is_there(proxy):
        compute_python()
        pieces += 1
    took = time.perf_counter() - began
    return took, pieces / took


def compute_python() -> None:
    """About 20 us of computing that holds the interpreter lock."""
    total = 0
    for i in range(500):
        total += i * i


def python_alone(seconds: float) -> float:
    """Pieces of computing in a second."""
    pieces = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(10):
            compute_python()
        pieces += 10
    return pieces / (time.perf_counter() - began)


def behind_numpy(report: Report, found: dict[str, Side], clear: Callable[[], object]) -> None:
    """The first half."""
    quick = report.settings.quick
    blocks, steps = (1, 2) if quick else (6, 5)
    size = (1 if quick else 10) * MB
    matrix = np.random.default_rng(0).random((SIDE, SIDE))
    values: dict[str, list[list[float]]] = {name: [] for name in found}
    for round_ in range(report.settings.few_rounds + 1):
        for name, side in found.items():
            spent = np.zeros(3)
            for block in range(blocks):
                # Short ones in turns, and each in both orders, against what drifts.
                arrivals = [side.arrivals(EACH, size) for _ in range(2 * steps)]
                turns: list[Callable[[], float]] = [
                    partial(loop_alone, steps, matrix),
                    partial(fetches_alone, side, arrivals[:steps]),
                    partial(loop_with_fetches, side, arrivals[steps:], matrix),
                ]
                for i in (0, 1, 2) if block % 2 else (2, 1, 0):
                    spent[i] += turns[i]()
                clear()
            if round_ or quick:  # the first warms up
                without, alone, both = spent / (blocks * steps) * 1e3
                values[name].append([(1 - (both - without) / alone) * 100, without, alone])
    experiment = f"numpy computing, {EACH} x {size // MB} MB fetched behind each step"
    for name, rows in values.items():
        hidden, computing, fetching = (list(one) for one in zip(*rows, strict=True))
        limit: tuple[Op, float] | None = (">=", 85.0) if name == "proxyplane" else None
        report.add(experiment, f"{name}: fetch time hidden", "%", hidden, target=limit)
        report.add(experiment, f"{name}: the fetches of a step alone", "ms", fetching)
        report.add(experiment, f"{name}: a step alone", "ms", computing)


def behind_python(
    report: Report, found: dict[str, Side], clear: Callable[[], object], size: int
) -> None:
    """The second half."""
    quick = report.settings.quick
    counts = dict.fromkeys(found, 1 if quick else 10 if size <= 10 * MB else 3)
    if size > 10 * MB and "ProxyStore" in counts:
        counts["ProxyStore"] = 1  # takes ten seconds and more
    idle: dict[str, list[float]] = {name: [] for name in found}
    busy: dict[str, list[float]] = {name: [] for name in found}
    kept: dict[str, list[float]] = {name: [] for name in found}
    for round_ in range(report.settings.few_rounds + 1):
        for name, side in found.items():
            count = counts[name]
            alone = fetches_alone(side, [[one] for one in side.arrivals(count, size)]) / count
            pace = python_alone(0.05 if quick else 0.5)
            arrivals = side.arrivals(count, size)
            both = [fetch_behind_python(side, arrival) for arrival in arrivals]
            pace = (pace + python_alone(0.05 if quick else 0.5)) / 2
            clear()
            if round_ or quick:
                idle[name].append(alone * 1e3)
                busy[name].append(sum(took for took, _ in both) / count * 1e3)
                done = sum(took * speed for took, speed in both)
                kept[name].append(done / sum(took for took, _ in both) / pace * 100)
    experiment = f"pure-Python computing, {size // MB} MB fetched behind it"
    for name in found:
        ours = name == "proxyplane"
        report.add(
            experiment,
            f"{name}: a fetch behind it",
            "ms",
            busy[name],
            by=idle[name],
            base="idle",
            target=("<=", 4) if ours else None,
        )
        report.add(experiment, f"{name}: a fetch idle", "ms", idle[name])
        limit: tuple[Op, float] | None = (">=", 85.0) if ours else None
        report.add(experiment, f"{name}: pace of computing kept", "%", kept[name], target=limit)


def run(report: Report) -> None:
    """Runs both halves."""
    quick = report.settings.quick
    with redis_server(report) as server, redis.Redis.from_url(server.url) as client:
        found = sides(server.url)
        behind_numpy(report, found, client.flushall)
        for size in (1,) if quick else (10, 100):
            behind_python(report, found, client.flushall, size * MB)
