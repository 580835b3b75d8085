"""Objects as files: a large array to another process, and small objects, beside the bare calls.

The large array: the time from the put to its use in another process, which maps or reads it; to
the end of a full read there; of the get alone; how long the event loop stands still meanwhile; and
what a process needs beside the array. The small object: a put, which shows it whole or not at all,
and a get.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
import uuid
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks._figures import Found, keep, longest_stall, memory, no_collection
from benchmarks._file_ways import SMALL, Ours, ways
from benchmarks.harness import Report, object_directory, peer
from proxyplane import Store

LARGE = 100_000_000
BLOCK = 25
"""Small calls of one way before the next has its turn."""


def run_reader(connection: Connection, place: str) -> None:
    """The other process: gets, uses, reads; tells when, by the clock that both have."""
    made = {name: way(place) for name, way in ways().items()}
    gc.disable()
    connection.send(True)
    while (order := connection.recv()) is not None:
        name, key = order
        began = time.monotonic()
        array = made[name].get(key)
        first = int(array[0])
        usable = time.monotonic()
        total = int(array.sum())
        end = time.monotonic()
        del array
        gc.collect()
        connection.send((began, usable, end, first, total))
    for way in made.values():
        way.close()


def carry(report: Report, parent: str | None, medium: str) -> None:
    """A large array to another process."""
    count = _count(report)
    repeat = 1 if report.settings.quick else 5
    usable: Found = {}
    read: Found = {}
    opened: Found = {}
    number = 0
    with object_directory(parent) as place, peer(run_reader, place) as connection:
        connection.recv()
        made = {name: way(place) for name, way in ways().items()}
        for turn in range(report.settings.rounds + 1):
            times: dict[str, list[tuple[float, ...]]] = {name: [] for name in made}
            for _ in range(repeat):
                for name, way in made.items():
                    number += 1
                    array = np.full(count, number)  # a fresh object, with contents of its own
                    began = time.monotonic()
                    key = way.put(array)
                    connection.send((name, key))
                    got, use, end, first, total = connection.recv()
                    assert (first, total) == (number, number * count)
                    way.evict(key)
                    times[name].append((use - began, end - began, use - got))
            if turn:  # the first one warms up
                keep(times, (usable, read, opened), 1e3)
        for way in made.values():
            way.close()
    experiment = f"{count * 8 / 1e6:g} MB array, {medium}"
    _add(report, experiment, "put to usable", "ms", usable, 0.20)
    _add(report, experiment, "put to fully read", "ms", read, 0.25)
    _add(report, experiment, "get alone", "ms", opened, 0.01)


def call_small(
    report: Report, parent: str | None, medium: str, put_limit: float | None, get_limit: float
) -> None:
    """Puts and gets of 1 KB, in one process."""
    turns = 2 if report.settings.quick else 40
    puts: Found = {}
    gets: Found = {}
    with object_directory(parent) as place:
        made = {name: way(place) for name, way in ways().items()}
        for turn in range(report.settings.rounds + 1):
            times: dict[str, list[tuple[float, ...]]] = {name: [] for name in made}
            for _ in range(turns):
                for name, way in made.items():
                    times[name].append(_block(way))
            if turn:
                keep(times, (puts, gets), 1e6)
        for way in made.values():
            way.close()
    for what, found, limit in (("put", puts, put_limit), ("get", gets, get_limit)):
        _add(report, f"1 KB, {medium}", what, "us", found, limit, awaited=False)


def _block(way: Ours) -> tuple[float, float]:
    """Seconds of one put and of one get."""
    with no_collection():
        way.evict(way.put(SMALL))  # its code is in the caches again
        began = time.perf_counter()
        keys = way.puts(SMALL, BLOCK)
        put = (time.perf_counter() - began) / BLOCK
        assert way.get(keys[0]) == SMALL
        began = time.perf_counter()
        way.gets(keys)
        got = (time.perf_counter() - began) / BLOCK
        for key in keys:
            way.evict(key)
    return put, got


def _add(
    report: Report,
    experiment: str,
    what: str,
    unit: str,
    found: Found,
    limit: float | None,
    *,
    awaited: bool = True,
) -> None:
    """Adds a row for each way: beside the reference's if there is one, ours with a target."""
    base = "ProxyStore"
    for name, values in found.items():
        by = found.get(base) if name != base else None
        ours = name == "proxyplane" or (awaited and name == "proxyplane, awaited")
        report.add(
            experiment,
            f"{what}, {name}",
            unit,
            values,
            by=by,
            base=base if by else "",
            target=("<=", limit) if ours and by and limit is not None else None,
        )


def stall(report: Report) -> None:
    """How long a loop stands still at most while it awaits a large put, and a large get."""
    count = _count(report)
    found: Found = {"put": [], "get": []}

    async def main(place: str) -> None:
        store = Store(f"files-{uuid.uuid4().hex}", f"file://{place}", cache_size=0)
        for turn in range(report.settings.rounds + 1):
            array = np.full(count, turn)
            put, key = await longest_stall(store.put(array))
            got, back = await longest_stall(store.get(key))
            assert back[-1] == turn
            await store.evict(key)
            if turn:
                found["put"].append(put * 1e3)
                found["get"].append(got * 1e3)
        await store.aclose()

    with object_directory() as place:
        asyncio.run(main(place))
    experiment = f"an event loop that awaits {count * 8 / 1e6:g} MB"
    for what, values in found.items():
        report.add(experiment, f"longest stall, {what}", "ms", values, target=("<=", 5))


def run_alone(connection: Connection, place: str, name: str, count: int) -> None:
    """A fresh process: the peak of its memory over what it had before, in bytes."""
    way = ways()[name](place)
    warm = way.put(np.ones(200_000))
    assert way.get(warm)[-1] == 1
    way.evict(warm)
    key = connection.recv()
    if key is None:
        array = np.full(count, 7)
        before = memory("VmRSS")
        key = way.put(array)
    else:
        before = memory("VmRSS")
        assert int(way.get(key).sum()) == 7 * count
    connection.send((key, memory("VmHWM") - before))
    assert connection.recv() is None
    way.close()


def weigh(report: Report) -> None:
    """What a process needs beside the array when it puts it, and when it gets and reads it."""
    count = _count(report)
    found: dict[str, Found] = {"put": {}, "get": {}}

    def ask(place: str, name: str, what: str, key: Any) -> Any:
        with peer(run_alone, place, name, count) as connection:
            connection.send(key)
            key, peak = connection.recv()
        found[what].setdefault(name, []).append(peak / (count * 8))
        return key

    with object_directory() as place:
        for _ in range(min(report.settings.rounds, 3)):
            for name in ways():
                if name != "bare system calls":
                    key = ask(place, name, "put", None)
                    ask(place, name, "get", key)
    for what, limit in (("put", 0.1), ("get", 1.1)):
        for name, values in found[what].items():
            report.add(
                "peak memory over that before, by the array's",
                f"{what}, {name}",
                "x",
                values,
                target=("<=", limit) if name != "ProxyStore" else None,
            )


def _count(report: Report) -> int:
    return (LARGE // 50 if report.settings.quick else LARGE) // 8


def run(report: Report) -> None:
    """Runs it on the disk of temporary files, and in memory if there is such a file system."""
    carry(report, None, "disk")
    call_small(report, None, "disk", 1.5, 1.0)
    if os.path.isdir("/dev/shm"):
        carry(report, "/dev/shm", "/dev/shm")
        call_small(report, "/dev/shm", "/dev/shm", None, 1.0)
    stall(report)
    if os.access("/proc/self/clear_refs", os.W_OK):
        weigh(report)
