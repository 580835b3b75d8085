"""Writers and readers of one name in several processes, threads and loops."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import proxyplane as pp
from proxyplane.connectors.file.publish import is_library_key
from support import names_worker
from support.names import no_exchange
from support.names_worker import NAME, STOP, check, make_notes, read, write

WORKER = Path(names_worker.__file__)
# Bytes of the values, and how many each writer puts.
LOADS = {
    "small": ([100, 2000], 1000),
    "small and large": ([100, 10_000, 300_000], 300),
    "1 MB": ([1 << 20], 100),
    "20 MB": ([20 << 20], 10),
}
CASES = [
    *itertools.product(("file", "redis"), LOADS),
    ("endpoint", "small and large"),
    ("peer", "20 MB"),
]
LIMIT = 300  # seconds; only a hang takes so long


@pytest.fixture(params=["file", "redis", "peer"])
def url(request: Any, tmp_path: Path) -> str:
    """A medium that processes share."""
    if request.param == "redis":
        redis: str = request.getfixturevalue("redis_url")  # with a namespace of its own
        return redis
    if request.param == "endpoint":
        request.getfixturevalue("site")
        return pp.EndpointConnector().url
    if request.param == "peer":
        _, far = request.getfixturevalue("sites")
        return pp.EndpointConnector(far.name).url
    return f"file://{tmp_path}/objects"


@contextlib.contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A worker, which is killed in the end if it still runs."""
    started = subprocess.Popen(
        [sys.executable, str(WORKER), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def end(worker: subprocess.Popen[str]) -> int:
    """How much a worker did; fails if it failed."""
    out, err = worker.communicate(timeout=LIMIT)
    assert (worker.returncode, err) == (0, "")
    return int(out)


async def first_value(url: str, size: int) -> None:
    """Puts one, so that readers find something."""
    async with pp.Store("first", url) as store:
        await store.put(names_worker.value(0, 0, size), key=NAME)


def clear(url: str) -> None:
    """Leaves nothing behind."""

    async def run() -> None:
        async with pp.Store("clearing", url) as store:
            await store.evict(NAME)

    asyncio.run(run())


@pytest.mark.parametrize(("url", "load"), CASES, indirect=["url"])
def test_no_mixed_and_no_stale_value(url: str, load: str, tmp_path: Path) -> None:
    """Two processes overwrite; others read whole values, and strict ones none that is over."""
    sizes, count = LOADS[load]
    noted = make_notes(tmp_path / "notes")
    asyncio.run(first_value(url, sizes[0]))
    with contextlib.ExitStack() as stack:

        def start(*arguments: object) -> subprocess.Popen[str]:
            return stack.enter_context(process(url, tmp_path / "notes", *arguments))

        readers = [start(how) for how in ("strict", "proxy", "batch", "blocking", "any")]
        writers = [start("write", writer, count, *sizes) for writer in (0, 1)]
        assert [end(one) for one in writers] == [count, count]
        noted[STOP] = 1
        assert all(end(one) for one in readers)
    clear(url)
    if url.startswith("file:"):
        assert [name for name in os.listdir(url.removeprefix("file://")) if name[0] != "."] == []


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_a_killed_writer_leaves_a_whole_value(url: str, size: int, tmp_path: Path) -> None:
    """Killed at any moment, a writer leaves the value before or the one that it was at."""
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)  # noqa: S311
    noted = make_notes(tmp_path / "notes")
    asyncio.run(first_value(url, size))
    rounds = 6
    for _ in range(rounds):
        before = int(noted[1])
        with process(url, tmp_path / "notes", "write", 1, 0, size) as writer:
            wanted = before + dice.randrange(1, 20)
            until = time.monotonic() + LIMIT
            while noted[1] < wanted and writer.poll() is None and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep(dice.uniform(0, 0.01))
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        assert noted[1] >= wanted, seed
        floors = noted[: names_worker.WRITERS].copy()

        async def look(floors: Any = floors) -> None:
            async with pp.Store("after", url) as store:
                check(await store.get(NAME, strict=True), floors)

        asyncio.run(look())
    clear(url)
    if url.startswith("file:"):
        left = [one for one in os.listdir(url.removeprefix("file://")) if is_library_key(one)]
        # What was stored and not yet published, or replaced and not yet removed.
        assert len(left) <= rounds, seed


@pytest.mark.parametrize("kind", ["local", "file", "file under a lock"])
@pytest.mark.parametrize("size", [100, 300_000])
def test_threads_with_loops(
    kind: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in the threads of one process, each with a loop of its own."""
    if kind == "file under a lock":
        no_exchange(monkeypatch)
    noted = make_notes(tmp_path / "notes")
    connector: Any = pp.LocalConnector() if kind == "local" else pp.FileConnector(tmp_path / "o")
    failed = threading.Event()

    async def run(role: str, writer: int) -> int:
        store = pp.Store(f"{kind} {role} {writer}", connector, cache_size=4)
        if role == "write":
            return await write(store, noted, writer, 200, [size])
        return await read(store, noted, role)

    def work(role: str, writer: int = 0) -> int:
        try:
            return asyncio.run(run(role, writer))
        except BaseException:
            failed.set()
            noted[STOP] = 1
            raise

    asyncio.run(pp.Store("first", connector).put(names_worker.value(0, 0, size), key=NAME))
    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(work, how) for how in ("strict", "proxy", "batch", "blocking")]
        writers = [pool.submit(work, "write", writer) for writer in (0, 1)]
        try:
            assert [one.result(LIMIT) for one in writers] == [200, 200]
        finally:
            noted[STOP] = 1
        assert all(one.result(LIMIT) for one in readers)
    assert not failed.is_set()
    asyncio.run(connector.aclose(clear=True))
