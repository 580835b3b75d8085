"""What a process holds that could grow, and whether it did.

The first third of the samples is for warming up: connections, worker threads, caches, the arenas of
the allocator. After it, each measure must be flat: its last values are no more than a little above
its first ones, and the line through all of them rises no more than that either.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import statistics
import sys
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

COLLECTIONS = (dict, set, list, deque, OrderedDict, WeakKeyDictionary, WeakSet, WeakValueDictionary)
LIBRARY = "proxyplane"

ROOM = {
    "MiB": 12.0,
    "heap MiB": 6.0,
    "blocks": 4_000,
    "descriptors": 24,
    "threads": 8,
    "tasks": 10,
    "objects": 300,
    "entries": 300,
    "left": 100,
}
"""By how much each may be more at the end than after the warm-up, after any number of operations.

- MiB: memory that is resident, once the allocator has given back what is free.
- heap MiB: what is in use of it, but for Python's small blocks.
- blocks: those.
- descriptors, threads: as the system counts them.
- tasks: of asyncio, on all loops, that are not done.
- objects: instances of the library's classes.
- entries: in all collections that these instances and the library's modules have.
- left: objects in the medium that nobody is to find, those included that have a short lease.
"""

WARMING = {
    **ROOM,
    "MiB": 40.0,
    "heap MiB": 15.0,
    "blocks": 20_000,
    "descriptors": 90,
    "threads": 16,
    "tasks": 60,
    "objects": 1_000,
    "entries": 500,
    "left": 200,
}
"""The same for seconds of work, in which everything is made for the first time."""


class _Mallinfo(ctypes.Structure):
    _fields_ = [(f"_{number}", ctypes.c_size_t) for number in range(10)]


def heap() -> dict[str, float]:
    """What is in use of the heap; the rest is given back. Where the C library can do that."""
    try:
        library = ctypes.CDLL(None)
        trim, ask = library.malloc_trim, library.mallinfo2
    except (AttributeError, OSError):
        return {}
    ask.restype = _Mallinfo
    trim(0)
    return {"heap MiB": round(ask()._7 / (1 << 20), 2)}


def held() -> dict[str, float]:
    """What this process holds now."""
    gc.collect()
    used = heap()
    with open("/proc/self/statm") as numbers:
        pages = int(numbers.read().split()[1])
    everything = gc.get_objects()
    own = library_objects(everything)
    return {
        "MiB": round(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 1),
        **used,
        "blocks": sys.getallocatedblocks(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": sum(issubclass(type(one), asyncio.Task) and not one.done() for one in everything),
        "objects": len(own),
        "entries": sum(entries(own).values()),
    }


def library_objects(everything: Sequence[Any]) -> list[Any]:
    """Those of the library's classes; unlike `isinstance`, `type` resolves no proxy."""
    return [one for one in everything if str(type(one).__module__).startswith(LIBRARY)]


def entries(own: Sequence[Any]) -> Counter[str]:
    """How much is in the library's collections, by the place of each."""
    count: Counter[str] = Counter()
    for name, module in sys.modules.copy().items():
        if name.startswith(LIBRARY):
            for attribute, value in vars(module).copy().items():
                if not attribute.startswith("__") and isinstance(value, COLLECTIONS):
                    count[f"{name}.{attribute}"] += len(value)
    for one in own:
        for attribute, value in _attributes(one):
            if type(value) in COLLECTIONS:
                count[f"{type(one).__qualname__}.{attribute}"] += len(value)
    return count


def _attributes(one: Any) -> list[tuple[str, Any]]:
    found = []
    for base in type(one).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            member = base.__dict__.get(name)
            try:
                found.append((name, type(member).__get__(member, one)))
            except (AttributeError, TypeError):
                continue
    try:
        found += object.__getattribute__(one, "__dict__").copy().items()
    except AttributeError:
        pass
    return found


def census() -> Counter[str]:
    """Where objects and entries are, to tell which of them have become more."""
    gc.collect()
    everything = gc.get_objects()
    own = library_objects(everything)
    count = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in everything)
    return count + entries(own)


def rise(values: Sequence[float]) -> tuple[float, float]:
    """By how much the last fifth is above the first, and by how much a line through all rises."""
    part = max(len(values) // 5, 2)
    growth = statistics.median(values[-part:]) - statistics.median(values[:part])
    if len(set(values)) == 1:
        return growth, 0.0
    slope = statistics.linear_regression(range(len(values)), values).slope
    return growth, slope * (len(values) - 1)


def of_process(pid: int) -> dict[str, float]:
    """What another process holds, seen from outside."""
    with open(f"/proc/{pid}/status") as lines:
        said = dict(line.split(":", 1) for line in lines)
    return {
        "MiB": int(said["VmRSS"].split()[0]) / 1024,
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(said["Threads"]),
    }


def grown(
    samples: Sequence[Mapping[str, float]], room: Mapping[str, float] = ROOM
) -> dict[str, str]:
    """The measures that are not flat, and how they rise.

    Args:
        samples: In the order of time, at about equal distances.
        room: By how much each may rise.
    """
    rest = samples[len(samples) // 3 :]
    assert len(rest) >= 6, "too few samples to judge"
    found = {}
    for name in rest[0]:
        values = [sample[name] for sample in rest]
        growth, line = rise(values)
        if growth > room[name] or line > room[name]:
            found[name] = f"{growth:+.4g}, the line through all {line:+.4g}: {values}"
    return found
