"""What the file and the local connector were decided by: ways to publish, to read, to copy.

``python benchmarks/file_media.py [DIRECTORY ...]``, by default on ``/tmp`` and ``/dev/shm``. Prints
medians in microseconds. Compare within one run: figures of two machines, or of two runs on a busy
one, say little.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

c_mmap = ctypes.CDLL(None).mmap
c_mmap.restype = ctypes.c_void_p
c_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]

SIZES = [1 << 10, 64 << 10, 256 << 10, 1 << 20, 10 << 20, 100 << 20]


def spent(calls: dict[str, Callable[[], object]], repeat: int, *, keep: bool) -> dict[str, float]:
    """Medians of the microseconds the calls take, in turns; what they return is kept or dropped."""
    kept = []
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.disable()
    for _ in range(repeat):
        for name, call in calls.items():
            start = time.perf_counter()
            result = call()
            if keep:
                kept.append(result)
            del result
            times[name].append(time.perf_counter() - start)
    gc.enable()
    return {name: statistics.median(some) * 1e6 for name, some in times.items()}


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


class Held:
    """`anonymous`, with descriptors of the directory and of /proc/self/fd held open."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)

    def publish(self, folder: str, body: bytes) -> str:
        """Publishes a file; returns its path."""
        name = os.urandom(8).hex()
        fd = os.open(".", os.O_WRONLY | os.O_TMPFILE, 0o600, dir_fd=self.directory)
        write(fd, body)
        os.link(
            str(fd),
            name,
            src_dir_fd=self.descriptors,
            dst_dir_fd=self.directory,
            follow_symlinks=True,
        )
        os.close(fd)
        return f"{folder}/{name}"


def rewritten(folder: str, body: bytes) -> Callable[[], object]:
    """What recycling files could save at most: pages that are there are written again."""
    path = f"{folder}/rewritten"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)

    def rewrite() -> None:
        os.lseek(fd, 0, os.SEEK_SET)
        write(fd, body)

    rewrite()
    os.unlink(path)
    return rewrite


def read(path: str) -> bytearray:
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(os.fstat(file.fileno()).st_size)
        file.readinto(buffer)
    return buffer


def map_(path: str) -> mmap.mmap:
    with open(path, "rb", buffering=0) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def populated(path: str) -> mmap.mmap:
    mapped = map_(path)
    mapped.madvise(22)  # MADV_POPULATE_READ
    return mapped


def without_descriptor(path: str) -> mmap.mmap:
    """Over an anonymous map, so that it holds no descriptor before Python 3.13."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        fixed = mmap.MAP_PRIVATE | 0x10
        assert c_mmap(address, size, 3, fixed, file.fileno(), 0) == address
        return mapped


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
        calls = {name: make(body) for name, make in ways.items()}
        found = spent(calls, repeat, keep=keep)
        row = "".join(f"{found[name]:>22,.1f}" for name in ways)
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
        "same, held directory": publish(Held(folder).publish),
        "only rewritten": lambda body: rewritten(folder, body),
    }
    table(f"{folder}: publish and unlink, us", ways, keep=False)

    numbers = itertools.count()

    def stored(get: Callable[[str], object]) -> Callable[[bytes], Callable[[], object]]:
        def make(body: bytes) -> Callable[[], object]:
            path = f"{folder}/object-{next(numbers)}"
            with open(path, "wb") as file:
                file.write(body)
            return partial(get, path)

        return make

    ways = {
        "read": stored(read),
        "map": stored(map_),
        "read, use": stored(partial(touched, read)),
        "map, use": stored(partial(touched, map_)),
        "map, no descriptor": stored(without_descriptor),
        "populated": stored(populated),
        "populated, use": stored(partial(touched, populated)),
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
