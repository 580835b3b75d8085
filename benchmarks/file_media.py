"""What the file and the local connector were decided by: ways to publish, to read, to copy.

``python benchmarks/file_media.py [DIRECTORY ...]``, by default on ``/tmp`` and ``/dev/shm``. Prints
medians in microseconds. Compare within one run: figures of two machines, or of two runs on a busy
one, say little.
"""

from __future__ import annotations

import argparse
import gc
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

SIZES = [1 << 10, 64 << 10, 256 << 10, 1 << 20, 10 << 20, 100 << 20]


def spent(call: Callable[[], object], repeat: int, *, keep: bool) -> float:
    """Median of the microseconds a call takes; its results live on, or are dropped at once."""
    kept, times = [], []
    gc.disable()
    for _ in range(repeat):
        start = time.perf_counter()
        result = call()
        if keep:
            kept.append(result)
        del result
        times.append(time.perf_counter() - start)
    gc.enable()
    return statistics.median(times) * 1e6


def write(fd: int, body: bytes) -> None:
    view = memoryview(body)
    while view:
        view = view[os.writev(fd, [view]) :]


def named(folder: str, body: bytes, how: str) -> str:
    temporary, name = (f"{folder}/{os.urandom(8).hex()}" for _ in range(2))
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    write(fd, body)
    if how == "rename":
        os.rename(temporary, name)
    else:
        os.link(temporary, name)
        os.unlink(temporary)
    os.close(fd)
    return name


def anonymous(folder: str, body: bytes, *, reserve: bool) -> str:
    name = f"{folder}/{os.urandom(8).hex()}"
    fd = os.open(folder, os.O_WRONLY | os.O_TMPFILE, 0o600)
    if reserve:
        os.posix_fallocate(fd, 0, len(body))
    write(fd, body)
    os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=fd, follow_symlinks=True)
    os.close(fd)
    return name


def read(path: str) -> bytearray:
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(os.fstat(file.fileno()).st_size)
        file.readinto(buffer)
    return buffer


def map_(path: str) -> mmap.mmap:
    with open(path, "rb", buffering=0) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def touched(get: Callable[[str], bytearray | mmap.mmap], path: str) -> object:
    """Gets and looks at one byte of each page, as a program that uses the object does."""
    buffer = get(path)
    with memoryview(buffer) as view:
        view[::4096].tobytes()
    return buffer


def copied(body: bytes, *, huge: bool) -> object:
    memory = mmap.mmap(-1, len(body), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge:
        memory.madvise(mmap.MADV_HUGEPAGE)
    memory[:] = body
    return memory


def table(title: str, ways: dict[str, Callable[[bytes], Callable[[], object]]], keep: bool) -> None:
    print(f"\n{title}")
    print(f"{'':>12}" + "".join(f"{way:>22}" for way in ways))
    for size in SIZES:
        body = os.urandom(1 << 10) * (size >> 10)
        repeat = max(7, min(300, (200 << 20) // size // 4))
        row = "".join(f"{spent(make(body), repeat, keep=keep):>22,.0f}" for make in ways.values())
        print(f"{size >> 10:>9} KB" + row, flush=True)


def of_directory(folder: str) -> None:
    def publish(way: Callable[..., str], **options: object) -> Callable[[bytes], object]:
        def make(body: bytes) -> Callable[[], object]:
            return lambda: os.unlink(way(folder, body, **options))

        return make

    ways = {
        "rename": publish(named, how="rename"),
        "link + unlink": publish(named, how="link"),
        "O_TMPFILE + link": publish(anonymous, reserve=False),
        "same, reserved": publish(anonymous, reserve=True),
    }
    table(f"{folder}: publish and unlink, us", ways, keep=False)

    path = f"{folder}/object"

    def stored(get: Callable[[str], object]) -> Callable[[bytes], Callable[[], object]]:
        def make(body: bytes) -> Callable[[], object]:
            with open(path, "wb") as file:
                file.write(body)
            return partial(get, path)

        return make

    ways = {
        "read": stored(read),
        "map": stored(map_),
        "read, use": stored(partial(touched, read)),
        "map, use": stored(partial(touched, map_)),
    }
    table(f"{folder}: get, dropped at once, us", ways, keep=False)
    table(f"{folder}: get, all kept, us", ways, keep=True)

    body, count, start = os.urandom(1 << 20) * 100, 40, time.perf_counter()
    for _ in range(count):
        anonymous(folder, body, reserve=True)
    each = (time.perf_counter() - start) / count * 1e6
    print(f"\n{folder}: {count} objects of 100 MB published and kept: {each:,.0f} us each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="*", default=["/tmp", "/dev/shm"])
    for parent in parser.parse_args().directory:
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            of_directory(folder)
    ways = {
        "join": lambda body: lambda: b"".join([memoryview(body)]),
        "bytearray": lambda body: lambda: bytearray(body),
        "map": lambda body: lambda: copied(body, huge=False),
        "map, huge pages": lambda body: lambda: copied(body, huge=True),
    }
    table("memory: copy, dropped at once, us", ways, keep=False)
    table("memory: copy, all kept, us", ways, keep=True)


if __name__ == "__main__":
    main()
