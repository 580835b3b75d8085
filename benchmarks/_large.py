"""One large array: to another process, awaited in a loop, in memory, beside another client."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks._bare import BareSockets
from benchmarks._figures import (
    Found,
    add_ways,
    as_array,
    fresh_array,
    fresh_bytes,
    keep,
    large,
    longest_stall,
    memory,
    size_name,
)
from benchmarks._media import AWAITED, BASE, OURS, Medium, opened, ways
from benchmarks._report import Report
from benchmarks._way import InLoop, Way
from benchmarks.harness import peer, quantile


def run_reader(connection: Connection, place: str) -> None:
    """The other process: gets, uses, reads; tells when, by the clock that both have."""
    gc.disable()
    with opened(place) as made:
        connection.send(True)
        while (order := connection.recv()) is not None:
            name, key = order
            began = time.monotonic()
            array = as_array(made[name].get(key))
            first = int(array[0])
            usable = time.monotonic()
            total = int(array.sum())
            end = time.monotonic()
            del array
            gc.collect()
            connection.send((began, usable, end, first, total))


def carry(report: Report, medium: Medium) -> None:
    """A large array to another process."""
    size = large(report)
    usable: Found = {}
    read: Found = {}
    alone: Found = {}
    with medium.open() as place, peer(run_reader, place) as connection, opened(place) as made:
        connection.recv()
        for turn in range(report.settings.rounds + 1):
            times: dict[str, list[tuple[float, ...]]] = {name: [] for name in made}
            for _ in range(1 if report.settings.quick else 3):
                for name, way in made.items():
                    array = fresh_array(size)
                    began = time.monotonic()
                    key = way.put(array)
                    connection.send((name, key))
                    got, use, end, first, total = connection.recv()
                    assert (first, total) == (array[0], array[0] * len(array))
                    way.evict(key)
                    times[name].append((use - began, end - began, use - got))
            if turn:  # the first one warms up
                keep(times, (usable, read, alone), 1e3)
    experiment = f"{size_name(size)} array to another process, {medium.name}"
    add_ways(report, medium, "usable", experiment, "put to usable", "ms", usable)
    add_ways(report, medium, "read", experiment, "put to fully read", "ms", read)
    add_ways(report, medium, "open", experiment, "get alone", "ms", alone)


def stall(report: Report, medium: Medium) -> None:
    """How long a loop stands still at most while it awaits a large put, and a large get."""
    found: dict[str, Found] = {"put": {}, "get": {}}
    with medium.open() as place:
        in_loop = [name for name, way in ways(place).items() if issubclass(way, InLoop)]
        with opened(place, *in_loop, BASE) as made:
            for turn in range(report.settings.rounds + 1):
                for name, way in made.items():
                    array = fresh_array(large(report))
                    put, key = way.run(longest_stall(way.putting(array)))
                    got, back = way.run(longest_stall(way.getting(key)))
                    assert np.array_equal(as_array(back), array)
                    way.evict(key)
                    if turn:
                        found["put"].setdefault(name, []).append(put * 1e3)
                        found["get"].setdefault(name, []).append(got * 1e3)
    experiment = f"an event loop that awaits {size_name(large(report))}, {medium.name}"
    for what, values in found.items():
        plot = ("stall", f"{what}, {medium.name}")
        title = f"longest stall, {what}"
        add_ways(
            report, medium, "stall", experiment, title, "ms", values, compared=False, plot=plot
        )


def run_client(connection: Connection, place: str) -> None:
    """Another client of the server: gets of 1 KB for as long as it is told to, and their times."""
    bare = BareSockets(place)
    obj = fresh_bytes(1024)
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


def share(report: Report, medium: Medium) -> None:
    """How long another client's gets of 1 KB take while large arrays go to and fro."""
    found: dict[str, Found] = {"put": {}, "get": {}}
    repeat = 2 if report.settings.quick else 4
    with medium.open() as place, peer(run_client, place) as connection, opened(place) as made:
        connection.recv()

        def watch(name: str, what: str, work: Callable[[], Any]) -> Any:
            connection.send("begin")
            result = [work() for _ in range(repeat)]
            connection.send("end")
            times = connection.recv()
            found[what].setdefault(name, []).append(quantile(times, 0.99) * 1e3)
            return result

        for _ in range(report.settings.rounds):
            for name, way in made.items():
                array = fresh_array(large(report))
                put = partial(way.put, array)
                way.evict(put())
                first, *others = watch(name, "put", put)
                for key in others:
                    way.evict(key)
                watch(name, "get", partial(_look, way, first, array[0]))
                way.evict(first)
    experiment = f"another client's 1 KB, {size_name(large(report))} under way, {medium.name}"
    for what, values in found.items():
        title = f"p99 during {what}"
        add_ways(report, medium, "share", experiment, title, "ms", values, compared=False)


def _look(way: Way, key: Any, number: int) -> None:
    found = as_array(way.get(key))
    assert found[0] == found[-1] == number


def run_alone(connection: Connection, place: str, name: str, size: int) -> None:
    """A fresh process: the peak of its memory over what it had before, in bytes."""
    with opened(place, name) as made:
        way = made[name]
        warm = way.put(np.ones(200_000))
        assert len(way.get(warm))
        way.evict(warm)
        key = connection.recv()
        if key is None:
            array = np.full(size // 8, 7)
            before = memory("VmRSS")
            key = way.put(array)
        else:
            before = memory("VmRSS")
            assert int(as_array(way.get(key)).sum()) == 7 * (size // 8)
        connection.send((key, memory("VmHWM") - before))
        assert connection.recv() is None


def weigh(report: Report, medium: Medium) -> None:
    """What a process needs beside the array when it puts it, and when it gets and reads it."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        report.note("peak memory is left out: /proc/self/clear_refs cannot be written here")
        return
    size = large(report)
    found: dict[str, Found] = {"put": {}, "get": {}}

    def ask(name: str, what: str, key: Any) -> Any:
        with peer(run_alone, place, name, size) as connection:
            connection.send(key)
            key, peak = connection.recv()
        found[what].setdefault(name, []).append(peak / size)
        return key

    # Each is two processes more.
    chosen = [OURS, BASE] if report.settings.quick else [OURS, AWAITED, BASE, "redis-py"]
    with medium.open() as place, opened(place, *chosen) as made:
        for _ in range(report.settings.few_rounds):
            for name, way in made.items():
                key = ask(name, "put", None)
                ask(name, "get", key)
                way.evict(key)
    experiment = f"peak memory over that before, by the array's, {medium.name}"
    for what, values in found.items():
        plot = ("memory", f"{what}, {medium.name}")
        add_ways(report, medium, what, experiment, what, "x", values, compared=False, plot=plot)
