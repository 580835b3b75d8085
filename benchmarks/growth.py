"""What a put, a get and `exists` take while the number of stored objects grows to a million.

One way is filled and measured after the other, so that a medium holds only one of them.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import time
from typing import Any

from benchmarks._figures import fresh_bytes, no_collection
from benchmarks._media import BASE, OURS, Medium, directories, opened, servers
from benchmarks._report import Point, Report
from benchmarks._way import Way
from benchmarks.harness import has_reference

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
SIZE = 128
BATCH = 1_000
BLOCK = 100
"""Calls of one kind in a row; a figure is their mean."""
PATIENCE = 75
"""Seconds to store what makes the next count."""
_ROOM = 16_000
"""Bytes of memory, or of disk, that a small object may take: a file has a page and an inode."""

Times = dict[str, list[float]]


def fill(way: Way, count: int) -> list[Any]:
    """Stores so many objects; gives the keys of a tenth of them, from everywhere.

    Gives none if that takes too long.
    """
    keys: list[Any] = []
    deadline = time.monotonic() + PATIENCE
    for _ in range(count // BATCH):
        if time.monotonic() > deadline:
            return []
        stored = way.store.put_batch([fresh_bytes(SIZE) for _ in range(BATCH)])
        keys += random.sample(stored, BATCH // 10)
    return keys


def look(way: Way, keys: list[Any]) -> dict[str, float]:
    """Microseconds of one call of each kind, among all that is there."""
    objects = [fresh_bytes(SIZE) for _ in range(BLOCK)]
    chosen = random.sample(keys, BLOCK)
    with no_collection():
        marks = [time.perf_counter()]
        mine = way.puts(objects)
        marks.append(time.perf_counter())
        found = way.gets(chosen)
        marks.append(time.perf_counter())
        there = [way.store.exists(key) for key in chosen]
        marks.append(time.perf_counter())
    assert way.gets(mine) == objects
    assert all(there)
    assert all(len(one) == SIZE for one in found)
    for key in mine:
        way.evict(key)
    took = [(end - start) / BLOCK * 1e6 for start, end in itertools.pairwise(marks)]
    return dict(zip(("put", "get", "exists"), took, strict=True))


def grow(report: Report, medium: Medium, place: str, name: str) -> dict[int, Times]:
    """One way, from few objects to many."""
    found: dict[int, Times] = {}
    keys: list[Any] = []
    stored = 0
    with opened(place, name) as made:
        way = made[name]
        for count in COUNTS[:1] if report.settings.quick else COUNTS:
            if lack := lacking(place, count - stored):
                report.note(f"{count:,} objects, {name}, {medium.name}: left out, {lack}")
                break
            more = fill(way, count - stored)
            if not more:
                lack = f"they were not stored in {PATIENCE} s"
                report.note(f"{count:,} objects, {name}, {medium.name}: left out, {lack}")
                break
            keys += more
            stored = count
            look(way, keys)
            # More of them than elsewhere: a disk that still writes what was stored upsets some.
            rounds = [look(way, keys) for _ in range(4 * report.settings.rounds)]
            found[count] = {what: [one[what] for one in rounds] for what in rounds[0]}
    return found


def lacking(place: str, count: int) -> str:
    """What there is too little of for so many more objects; empty for nothing."""
    with open("/proc/meminfo", encoding="ascii") as table:
        free = next(int(line.split()[1]) for line in table if line.startswith("MemAvailable"))
    if free * 1024 < count * _ROOM / 2:
        return f"{free / 1e6:.0f} GB of memory are free"
    if place.startswith("file:"):
        room = os.statvfs(place.removeprefix("file://"))
        if room.f_favail < count * 2.5:
            return f"{room.f_favail:,} inodes are free"
        if room.f_bavail * room.f_frsize < count * _ROOM:
            return f"{room.f_bavail * room.f_frsize / 1e9:.0f} GB are free"
    return ""


def run(report: Report) -> None:
    """Runs it in every medium that other processes can read, with ours and with ProxyStore."""
    for medium in (*directories(), *servers(report)):
        for name in (OURS, *([BASE] if has_reference() else [])):
            with medium.open() as place:
                found = grow(report, medium, place, name)
            add(report, medium, name, found)


def add(report: Report, medium: Medium, name: str, found: dict[int, Times]) -> None:
    """Rows by the way's own figures among few objects."""
    for what, first in found.get(COUNTS[0], {}).items():
        few = statistics.median(first)
        for count, times in found.items():
            more = count != COUNTS[0]
            report.add(
                f"{what} among many objects, {name}, {medium.name}",
                f"{count:,} objects",
                "us",
                times[what],
                by=[few] * len(times[what]) if more else None,
                base=f"{COUNTS[0]:,} objects" if more else "",
                point=Point("growth", f"{what}, {medium.name}", name, count),
            )
