"""How much of the time of fetches disappears behind computing, and what it costs the computing.

*Numpy*: a loop of steps; each uses an array of 10 MB that was told to resolve in the background one
step before, and computes for about 60 ms with the interpreter lock released (a matrix product; BLAS
has one thread). Compared with the same loop with no fetches, and with the fetches alone:
``hidden = 1 - (with - without) / alone``. The server shares the two cores.

*Pure Python*: a thread computes and never lets go of the interpreter lock by itself, while one
object is fetched behind it. It looks often whether the object is there. How long that takes is
compared with the same when nothing computes, and the pace of the computing with its pace alone.
"""

from __future__ import annotations

import pickle
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

import proxyplane
from benchmarks.harness import Report, has_reference, redis_server
from benchmarks.wakeup import reference_store
from proxyplane.sync import Store

MB = 1_000_000
SIDE = 1000  # of the matrices: about 60 ms


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


def fetches_alone(side: Side, arrivals: list[bytes]) -> float:
    """Seconds of the fetches, one after another."""
    began = time.perf_counter()
    for arrival in arrivals:
        proxy = pickle.loads(arrival)
        side.resolve_async(proxy)
        assert proxy[-1] >= 0
    return time.perf_counter() - began


def loop_with_fetches(side: Side, arrivals: list[bytes], matrix: Any) -> float:
    """Seconds of both, one step ahead."""
    began = time.perf_counter()
    ahead = pickle.loads(arrivals[0])
    side.resolve_async(ahead)
    for i in range(len(arrivals)):
        compute_numpy(matrix)
        proxy = ahead
        if i + 1 < len(arrivals):
            ahead = pickle.loads(arrivals[i + 1])
            side.resolve_async(ahead)
        assert proxy[-1] >= 0
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


def behind_numpy(report: Report, found: dict[str, Side]) -> None:
    """The first half."""
    steps = 3 if report.settings.quick else 20
    size = (1 if report.settings.quick else 10) * MB
    matrix = np.random.default_rng(0).random((SIDE, SIDE))
    values: dict[str, list[list[float]]] = {name: [] for name in found}
    for round_ in range(report.settings.rounds + 1):
        for name, side in found.items():
            without = loop_alone(steps, matrix)
            alone = fetches_alone(side, side.arrivals(steps, size))
            with_ = loop_with_fetches(side, side.arrivals(steps, size), matrix)
            without = (without + loop_alone(steps, matrix)) / 2
            if round_ or report.settings.quick:  # the first warms up
                hidden = (1 - (with_ - without) / alone) * 100
                values[name].append([hidden, without / steps * 1e3, alone / steps * 1e3])
    experiment = f"numpy computing, {size // MB} MB fetched behind each step"
    for name, rows in values.items():
        hidden, computing, fetching = (list(one) for one in zip(*rows, strict=True))
        limit = (">=", 85.0) if name == "proxyplane" else None
        report.add(experiment, f"{name}: fetch time hidden", "%", hidden, target=limit)
        report.add(experiment, f"{name}: a fetch alone", "ms", fetching)
        report.add(experiment, f"{name}: a step alone", "ms", computing)


def behind_python(report: Report, found: dict[str, Side], size: int) -> None:
    """The second half."""
    quick = report.settings.quick
    count = 1 if quick else 10 if size <= 10 * MB else 3
    idle: dict[str, list[float]] = {name: [] for name in found}
    busy: dict[str, list[float]] = {name: [] for name in found}
    kept: dict[str, list[float]] = {name: [] for name in found}
    for round_ in range(report.settings.rounds + 1):
        for name, side in found.items():
            alone = fetches_alone(side, side.arrivals(count, size)) / count
            pace = python_alone(0.05 if quick else 0.5)
            arrivals = side.arrivals(count, size)
            both = [fetch_behind_python(side, arrival) for arrival in arrivals]
            pace = (pace + python_alone(0.05 if quick else 0.5)) / 2
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
        limit = (">=", 85.0) if ours else None
        report.add(experiment, f"{name}: pace of computing kept", "%", kept[name], target=limit)


def run(report: Report) -> None:
    """Runs both halves."""
    quick = report.settings.quick
    with redis_server() as server:
        found = sides(server.url)
        behind_numpy(report, found)
        for size in (1,) if quick else (10, 100):
            behind_python(report, found, size * MB)
