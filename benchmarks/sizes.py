"""What a put and a get take, from 1 KB to 100 MB, in every medium.

The objects are arrays. A get ends when all numbers were added, for a large file is mapped and not
read before.
"""

from __future__ import annotations

import time

from benchmarks._figures import (
    LARGE,
    Found,
    add_ways,
    as_array,
    fresh_array,
    keep,
    no_collection,
    size_name,
)
from benchmarks._media import Medium, directories, opened, servers
from benchmarks._report import Report
from benchmarks._way import Way

SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, LARGE)


def there_and_back(way: Way, size: int) -> tuple[float, float]:
    """Seconds of a put, and of a get with one full read; of small ones, many in a row."""
    count = max(1, min(25, 250_000 // size))
    if size < 1_000_000:
        way.evict(way.put(fresh_array(size)))  # its code is in the caches again
    arrays = [fresh_array(size) for _ in range(count)]
    began = time.perf_counter()
    keys = way.puts(arrays)
    put = (time.perf_counter() - began) / count
    if size < 1_000_000:
        way.get(keys[0])
    began = time.perf_counter()
    sums = [as_array(found).sum() for found in way.gets(keys)]
    got = (time.perf_counter() - began) / count
    assert sums == [array[0] * len(array) for array in arrays]
    for key in keys:
        way.evict(key)
    return put, got


def measure(report: Report, medium: Medium) -> None:
    """All sizes in one medium."""
    found: dict[int, tuple[Found, Found]] = {}
    sizes = SIZES[:4] if report.settings.quick else SIZES
    with medium.open() as place, opened(place) as made:
        for turn in range(report.settings.few_rounds + 1):
            for size in sizes:
                times: dict[str, list[tuple[float, ...]]] = {name: [] for name in made}
                for _ in range(1 if report.settings.quick else max(1, min(20, LARGE // 5 // size))):
                    with no_collection():
                        for name, way in made.items():
                            times[name].append(there_and_back(way, size))
                if turn:  # the first one warms up
                    keep(times, found.setdefault(size, ({}, {})), 1e3)
    for which, what in enumerate(("put", "get")):
        for size, both in found.items():
            add_ways(
                report,
                medium,
                "",
                f"{what} by size, {medium.name}",
                size_name(size),
                "ms",
                both[which],
                plot=("latency", f"{what}, {medium.name}"),
                x=size,
            )


def run(report: Report) -> None:
    """Runs it in every medium that other processes can read."""
    for medium in (*servers(report), *directories()):
        measure(report, medium)
