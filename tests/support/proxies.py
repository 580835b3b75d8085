"""Factories that can be watched, and stores whose reads are counted."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import proxyplane as pp
import proxyplane.sync
from proxyplane._server import EmbeddedServer
from proxyplane.abc import Factory
from support.servers import admin


class Slow:
    """A plain factory that takes its time and counts its calls."""

    def __init__(self, fail: BaseException | None = None) -> None:
        self.calls = 0
        self.fail = fail
        self.called = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> list[int]:
        self.calls += 1
        self.called.set()
        self.go.wait(10)
        if self.fail is not None:
            raise self.fail
        return [1, 2]


class SlowAsync(Factory[list[int]]):
    """A factory of its own async kind."""

    def __init__(self) -> None:
        self.calls = self.cancelled = 0
        self.called = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> list[int]:
        raise AssertionError("only awaited")

    async def acall(self) -> list[int]:
        self.calls += 1
        self.called.set()
        try:
            while not self.go.is_set():
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [1, 2]


def five() -> int:
    return 5


def run_threads(function: Callable[[], object], count: int = 50) -> list[Any]:
    """Calls it in many threads at once and returns what they returned or raised."""
    barrier = threading.Barrier(count)

    def work(_: int) -> object:
        barrier.wait(30)
        try:
            return function()
        except BaseException as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


class CountingFiles(pp.FileConnector):
    """Counts what is read of the medium."""

    reads = 0

    def get_sync(self, key: str, *, size: int | None = None) -> Any:
        type(self).reads += 1
        return super().get_sync(key, size=size)

    async def get(self, key: str, *, size: int | None = None) -> Any:
        type(self).reads += 1
        return await super().get(key, size=size)


class Reads:
    """A stored object with a counter of how often the medium gave it out."""

    def __init__(self, store: pp.sync.Store, count: Callable[[], int]) -> None:
        self.store = store
        self._count = count
        self._before = count()

    @property
    def count(self) -> int:
        return self._count() - self._before


@contextlib.contextmanager
def counted_reads(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reads]:
    """A store over the medium that `request.param` names, whose reads are counted."""
    if request.param == "file":
        CountingFiles.reads = 0
        with pp.sync.Store("reads", CountingFiles(tmp_path)) as store:
            yield Reads(store, lambda: CountingFiles.reads)
        return
    server: EmbeddedServer = request.getfixturevalue("own_redis_server")()
    with pp.sync.Store("reads", server.url) as store, admin(server) as client:

        def count() -> int:
            stats = client.info("commandstats")
            return sum(
                stats.get(f"cmdstat_{name}", {}).get("calls", 0)
                for name in ("get", "getrange", "mget", "getdel")
            )

        yield Reads(store, count)
