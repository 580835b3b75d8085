"""A process that puts under a name again and again, or reads it and checks what it gets.

Each value says who put it and as which of his, in every one of its numbers. A writer notes, in
memory that all processes share, which of his puts have returned. A strict reader looks at these
notes before he begins: from each writer he may get that value, or a later one.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import proxyplane as pp

NAME = "the name"
WRITERS = 4
STOP = WRITERS  # the place of the note that readers are to end


def notes(path: str | Path) -> Any:
    """What has been put, by writer; shared by all who open it."""
    return np.memmap(path, dtype=np.int64, mode="r+", shape=(WRITERS + 1,))


def make_notes(path: str | Path) -> Any:
    """The same, made anew."""
    np.full(WRITERS + 1, -1, dtype=np.int64).tofile(path)
    return notes(path)


def value(writer: int, number: int, size: int) -> Any:
    """A value of about so many bytes."""
    return np.full(max(size // 8, 1), number * WRITERS + writer, dtype=np.int64)


def check(found: Any, before: Any) -> tuple[int, int]:
    """Fails if a value is mixed, or older than one that was there; gives writer and number."""
    assert found is not None, "there was nothing"
    first = int(found[0])
    assert (found == first).all(), f"mixed: {np.unique(found)[:10]}"
    number, writer = divmod(first, WRITERS)
    if before is not None:
        assert number >= before[writer], f"{number} of {writer} is older than {before[writer]}"
    return writer, number


async def write(store: Any, noted: Any, writer: int, count: int, sizes: list[int]) -> int:
    """Puts so many, after those that are noted; without end if that is 0."""
    done = 0
    number = int(noted[writer])
    while not count or done < count:
        number += 1
        await store.put(value(writer, number, sizes[number % len(sizes)]), key=NAME)
        noted[writer] = number
        done += 1
    return done


async def read(store: Any, noted: Any, how: str) -> int:
    """Reads until it is told to stop; gives how often."""
    done = 0
    sync = pp.sync.Store.of(store)
    proxies: dict[str, Callable[[], Any]] = {
        "proxy": lambda: store.proxy_from_key(NAME, strict=True),
    }
    while True:
        stop = noted[STOP] >= 0
        before: Any = noted[:WRITERS].copy()
        if how == "strict":
            found = await store.get(NAME, strict=True)
        elif how == "batch":
            (found,) = await store.get_batch([NAME], strict=True)
        elif how == "blocking":
            found = await asyncio.to_thread(sync.get, NAME, strict=True)
        elif how == "proxy":
            found = await proxies[how]()
        else:
            found, before = await store.get(NAME), None
        check(found, before)
        done += 1
        if stop:
            return done


async def main(url: str, path: str, role: str, *arguments: str) -> int:
    """What the process does."""
    # A reader without a cache that is not strict would read nothing the second time.
    size = 4 if role in ("strict", "proxy") else 0
    async with pp.Store("names", url, cache_size=size) as store:
        if role == "write":
            writer, count, *sizes = map(int, arguments)
            return await write(store, notes(path), writer, count, sizes)
        return await read(store, notes(path), role)


if __name__ == "__main__":
    print(asyncio.run(main(*sys.argv[1:])))
