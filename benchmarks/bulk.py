"""Objects in a Redis server: a large array to another process, small objects, many at once.

The large array: the time from the put to its use in another process, and to the end of a full read
there; how long the event loop stands still meanwhile; what a process needs beside the array; and
how long another client of the server waits for a small object.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, cast

import numpy as np

from benchmarks._figures import Found, keep, longest_stall, memory, no_collection
from benchmarks._redis_ways import Awaited, Bare, Ours, ways
from benchmarks.harness import Report, peer, quantile, redis_server

LARGE = 100_000_000
BLOCK = 25
"""Small calls of one way before the next has its turn."""

BASE = "ProxyStore"
BLOCKING = ("proxyplane",)
AWAITED = ("proxyplane, awaited", "proxyplane, awaited, uvloop")

_numbers = itertools.count(1)


def run_reader(connection: Connection, place: str) -> None:
    """The other process: gets, uses, reads; tells when, by the clock that both have."""
    made = {name: way(place) for name, way in ways().items()}
    gc.disable()
    connection.send(True)
    while (order := connection.recv()) is not None:
        name, key = order
        array = _array(made[name].get(key))
        first = int(array[0])
        usable = time.monotonic()
        total = int(array.sum())
        end = time.monotonic()
        del array
        gc.collect()
        connection.send((usable, end, first, total))
    for way in made.values():
        way.close()


def _array(found: Any) -> Any:
    """What a way without a serialiser found, as the array it was."""
    return found if isinstance(found, np.ndarray) else np.frombuffer(found, np.int64)


def carry(report: Report, place: str) -> None:
    """A large array to another process."""
    count = _count(report)
    usable: Found = {}
    read: Found = {}
    with peer(run_reader, place) as connection:
        connection.recv()
        made = {name: way(place) for name, way in ways().items()}
        for turn in range(report.settings.rounds + 1):
            times: dict[str, list[tuple[float, ...]]] = {name: [] for name in made}
            for _ in range(1 if report.settings.quick else 3):
                for name, way in made.items():
                    number = next(_numbers)
                    array = np.full(count, number)  # a fresh object, with contents of its own
                    began = time.monotonic()
                    key = way.put(array)
                    connection.send((name, key))
                    use, end, first, total = connection.recv()
                    assert (first, total) == (number, number * count)
                    way.evict(key)
                    times[name].append((use - began, end - began))
            if turn:  # the first one warms up
                keep(times, (usable, read), 1e3)
        for way in made.values():
            way.close()
    experiment = f"{count * 8 / 1e6:g} MB array, to another process"
    _add(report, experiment, "put to usable", "ms", usable, {BLOCKING + AWAITED: 0.25})
    _add(report, experiment, "put to fully read", "ms", read, {BLOCKING + AWAITED: 0.27})


def call(report: Report, place: str) -> None:
    """Small objects one after another, those of 1 MB there and back, and many at once."""
    quick = report.settings.quick
    small: Found = {}
    there_and_back: Found = {}
    together: Found = {}
    made = {name: way(place) for name, way in ways().items()}
    for turn in range(report.settings.rounds + 1):
        for taken, found, scale, repeat in (
            (_get_small, small, 1e6, 40),
            (_there_and_back, there_and_back, 1e3, 15),
            (_get_together, together, 1e3, 5),
        ):
            times: dict[str, list[tuple[float, ...]]] = {name: [] for name in made}
            for _ in range(2 if quick else repeat):
                for name, way in made.items():
                    with no_collection():
                        times[name].append((taken(way),))
            if turn:
                keep(times, (found,), scale)
    for way in made.values():
        way.close()
    _add(report, "1 KB, got", "get", "us", small, {BLOCKING: 0.85, AWAITED: 0.35})
    _add(report, "100 KB, got a hundred at once", "all", "ms", together, {AWAITED: 0.35})
    _add(
        report,
        "1 MB, put and got",
        "there and back",
        "ms",
        there_and_back,
        {BLOCKING + AWAITED: 0.4},
    )


def _object(size: int) -> bytes:
    return b"%016d" % next(_numbers) * (size // 16)


def _get_small(way: Ours) -> float:
    """Seconds of one get."""
    objects = [_object(1024) for _ in range(BLOCK)]
    keys = [way.put(obj) for obj in objects]
    way.get(keys[0])  # its code is in the caches again
    began = time.perf_counter()
    found = way.gets(keys)
    taken = (time.perf_counter() - began) / BLOCK
    assert found == objects
    for key in keys:
        way.evict(key)
    return taken


def _there_and_back(way: Ours) -> float:
    """Seconds of a put and a get."""
    way.evict(way.put(_object(1 << 20)))
    obj = _object(1 << 20)
    began = time.perf_counter()
    key = way.put(obj)
    found = way.get(key)
    taken = time.perf_counter() - began
    assert found == obj
    way.evict(key)
    return taken


def _get_together(way: Ours) -> float:
    """Seconds of all."""
    objects = [_object(100_000) for _ in range(100)]
    keys = [way.put(obj) for obj in objects]
    began = time.perf_counter()
    found = way.together(keys)
    taken = time.perf_counter() - began
    assert found == objects
    for key in keys:
        way.evict(key)
    return taken


def stall(report: Report, place: str) -> None:
    """How long a loop stands still at most while it awaits a large put, and a large get."""
    count = _count(report)
    found: dict[str, Found] = {"put": {}, "get": {}}
    chosen = {name: way for name, way in ways().items() if issubclass(way, Awaited)}
    made = {name: cast("type[Awaited]", way)(place) for name, way in chosen.items()}
    for turn in range(report.settings.rounds + 1):
        for name, way in made.items():
            number = next(_numbers)
            array = np.full(count, number)
            worst_put, key = way.loop.run_until_complete(longest_stall(way.putting(array)))
            worst_get, back = way.loop.run_until_complete(longest_stall(way.getting(key)))
            assert np.array_equal(_array(back), array)
            way.evict(key)
            if turn:
                found["put"].setdefault(name, []).append(worst_put * 1e3)
                found["get"].setdefault(name, []).append(worst_get * 1e3)
    for way in made.values():
        way.close()
    experiment = f"an event loop that awaits {count * 8 / 1e6:g} MB of a server"
    for what, values in found.items():
        _add(report, experiment, f"longest stall, {what}", "ms", values, {AWAITED: 5})


def run_client(connection: Connection, place: str) -> None:
    """Another client of the server: gets of 1 KB for as long as it is told to, and their times."""
    bare = Bare(place)
    obj = _object(1024)
    key = bare.put(obj)
    connection.send(True)
    while connection.recv() is not None:
        times: list[float] = []
        due = time.perf_counter()
        while not times or not connection.poll():  # what it watches may be over very soon
            assert bare.get(key) == obj
            # By the time at which it was due: one long wait keeps many from being asked for.
            now = time.perf_counter()
            times.append(now - due)
            due += 0.001
            time.sleep(max(0.0, due - now))
        connection.recv()
        connection.send(times)
    bare.close()


def share(report: Report, place: str) -> None:
    """How long another client's gets of 1 KB take while large arrays go to and fro."""
    count = _count(report)
    found: dict[str, Found] = {"put": {}, "get": {}}
    repeat = 2 if report.settings.quick else 6
    with peer(run_client, place) as connection:
        connection.recv()

        def watch(name: str, what: str, work: Callable[[], Any]) -> Any:
            connection.send("begin")
            result = [work() for _ in range(repeat)]
            connection.send("end")
            times = connection.recv()
            found[what].setdefault(name, []).append(quantile(times, 0.99) * 1e3)
            return result

        made = {name: way(place) for name, way in ways().items()}
        for _ in range(report.settings.rounds):
            for name, way in made.items():
                array = np.full(count, next(_numbers))
                put = partial(way.put, array)
                way.evict(put())
                first, *others = watch(name, "put", put)
                for key in others:
                    way.evict(key)
                watch(name, "get", partial(_look, way, first, array[0]))
                way.evict(first)
        for way in made.values():
            way.close()
    experiment = f"another client's 1 KB, {count * 8 / 1e6:g} MB under way"
    for what, values in found.items():
        _add(report, experiment, f"p99 during {what}", "ms", values, {BLOCKING + AWAITED: 2})


def _look(way: Ours, key: Any, number: int) -> None:
    found = _array(way.get(key))
    assert found[0] == found[-1] == number


def run_alone(connection: Connection, place: str, name: str, count: int) -> None:
    """A fresh process: the peak of its memory over what it had before, in bytes."""
    way = ways()[name](place)
    warm = way.put(np.ones(200_000))
    assert len(way.get(warm))
    way.evict(warm)
    key = connection.recv()
    if key is None:
        array = np.full(count, 7)
        before = memory("VmRSS")
        key = way.put(array)
    else:
        before = memory("VmRSS")
        assert int(_array(way.get(key)).sum()) == 7 * count
    connection.send((key, memory("VmHWM") - before))
    assert connection.recv() is None
    way.close()


def weigh(report: Report, place: str) -> None:
    """What a process needs beside the array when it puts it, and when it gets and reads it."""
    count = _count(report)
    found: dict[str, Found] = {"put": {}, "get": {}}

    def ask(name: str, what: str, key: Any) -> Any:
        with peer(run_alone, place, name, count) as connection:
            connection.send(key)
            key, peak = connection.recv()
        found[what].setdefault(name, []).append(peak / (count * 8))
        return key

    # Each is two processes more.
    names = (
        [BLOCKING[0], BASE] if report.settings.quick else [*BLOCKING, AWAITED[0], BASE, "redis-py"]
    )
    chosen = {name: way for name, way in ways().items() if name in names}
    for _ in range(min(report.settings.rounds, 3)):
        for name, way in chosen.items():
            key = ask(name, "put", None)
            ask(name, "get", key)
            remover = way(place)
            remover.evict(key)
            remover.close()
    for what, limit in (("put", 0.1), ("get", 1.1)):
        _add(
            report,
            "peak memory over that before, by the array's",
            what,
            "x",
            found[what],
            {BLOCKING + AWAITED: limit},
        )


def _add(
    report: Report,
    experiment: str,
    what: str,
    unit: str,
    found: Found,
    limits: dict[tuple[str, ...], float],
) -> None:
    """Adds a row for each way; times beside the reference's, other figures by themselves."""
    compared = experiment[0].isdigit() and BASE in found
    for name, values in found.items():
        by = found[BASE] if compared and name != BASE else None
        limit = next((limit for names, limit in limits.items() if name in names), None)
        asked = limit is not None and (compared or not experiment[0].isdigit())
        report.add(
            experiment,
            f"{what}, {name}",
            unit,
            values,
            by=by,
            base=BASE if by else "",
            target=("<=", cast(float, limit)) if asked else None,
        )


def _count(report: Report) -> int:
    return (LARGE // 50 if report.settings.quick else LARGE) // 8


def run(report: Report) -> None:
    """Runs it on a server of its own."""
    for part in (carry, call, stall, share, weigh):
        with redis_server() as server:
            part(report, server.url)
