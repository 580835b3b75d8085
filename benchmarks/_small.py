"""Small objects: one after another, 1 MB there and back, and a hundred at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks._figures import Found, add_ways, fresh_bytes, keep, no_collection
from benchmarks._media import Medium, opened
from benchmarks._report import Report
from benchmarks._way import Way

BLOCK = 25
"""Small calls of one way before the next has its turn."""

Taken = tuple[float, ...]


def call(report: Report, medium: Medium) -> None:
    """1 KB, put and got, in one process."""
    put: Found = {}
    get: Found = {}
    take(report, medium, one_after_another, 40, (put, get), 1e6)
    experiment = f"1 KB, {medium.name}"
    add_ways(report, medium, "put 1 KB", experiment, "put", "us", put)
    add_ways(report, medium, "get 1 KB", experiment, "get", "us", get)


def call_many(report: Report, medium: Medium) -> None:
    """1 MB there and back, and a hundred objects of 100 KB at once."""
    both: Found = {}
    together: Found = {}
    take(report, medium, there_and_back, 15, (both,), 1e3)
    take(report, medium, all_together, 5, (together,), 1e3)
    name = medium.name
    add_ways(report, medium, "1 MB", f"1 MB, {name}", "put and got", "ms", both)
    experiment = f"100 KB, a hundred at once, {name}"
    add_ways(report, medium, "together", experiment, "got", "ms", together)


def take(
    report: Report,
    medium: Medium,
    measure: Callable[[Way], Taken],
    repeat: int,
    into: tuple[Found, ...],
    scale: float,
) -> None:
    """Lets the ways take turns."""
    with medium.open() as place, opened(place) as made:
        for turn in range(report.settings.rounds + 1):
            times: dict[str, list[Taken]] = {name: [] for name in made}
            for _ in range(2 if report.settings.quick else repeat):
                with no_collection():
                    for name, way in made.items():
                        times[name].append(measure(way))
            if turn:  # the first one warms up
                keep(times, into, scale)


def one_after_another(way: Way) -> Taken:
    """Seconds of a put and of a get."""
    way.evict(way.put(fresh_bytes(1024)))  # its code is in the caches again
    objects = [fresh_bytes(1024) for _ in range(BLOCK)]
    began = time.perf_counter()
    keys = way.puts(objects)
    put = (time.perf_counter() - began) / BLOCK
    way.get(keys[0])
    began = time.perf_counter()
    found = way.gets(keys)
    got = (time.perf_counter() - began) / BLOCK
    assert found == objects
    for key in keys:
        way.evict(key)
    return put, got


def there_and_back(way: Way) -> Taken:
    """Seconds of a put and a get."""
    way.evict(way.put(fresh_bytes(1 << 20)))
    obj = fresh_bytes(1 << 20)
    began = time.perf_counter()
    key = way.put(obj)
    found = way.get(key)
    taken = time.perf_counter() - began
    assert found == obj
    way.evict(key)
    return (taken,)


def all_together(way: Way) -> Taken:
    """Seconds of all."""
    objects = [fresh_bytes(100_000) for _ in range(100)]
    keys = [way.put(obj) for obj in objects]
    began = time.perf_counter()
    found = way.together(keys)
    taken = time.perf_counter() - began
    assert found == objects
    for key in keys:
        way.evict(key)
    return (taken,)
