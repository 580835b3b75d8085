"""A starter of one's own, and a medium that gives objects out when it is told to."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import itertools
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import proxyplane as pp
import proxyplane.sync
from proxyplane._runtime import eager
from proxyplane._runtime.window import Window
from proxyplane.config import EAGER_BYTES_VARIABLE, EAGER_FLIGHTS_VARIABLE, EAGER_VARIABLE
from proxyplane.testing.faults import Wrapper

_numbers = itertools.count()

LONG_GRACE = 0.3
"""Seconds of quiet before anything starts, for tests in which something happens in them."""


class Starter:
    """Background resolution that begins anew, as in a new process.

    Args:
        patch: Undoes it.
        flights: The window, in objects.
        nbytes: The window, in bytes.
        grace: Seconds of quiet before anything starts.
    """

    def __init__(
        self, patch: pytest.MonkeyPatch, flights: int, nbytes: int, grace: float | None
    ) -> None:
        patch.setenv(EAGER_VARIABLE, "1")
        patch.setenv(EAGER_FLIGHTS_VARIABLE, str(flights))
        patch.setenv(EAGER_BYTES_VARIABLE, str(nbytes))
        if grace is not None:
            patch.setattr(eager, "GRACE", grace)
            patch.setattr(eager, "GRACE_LIMIT", 20 * grace)
        self.process = eager._Process()
        patch.setattr(eager, "_process", self.process)

    def settle(self) -> None:
        """Returns when what has arrived was looked at, and started if it is to start."""
        wait_until(lambda: not self.process.alert and not self.process.arrived)
        assert self.process.run_starter()
        for _ in range(2):  # it admits after it has read its notices
            done = threading.Event()
            self.process.notices.put(done.set)
            assert done.wait(20)

    @property
    def window(self) -> Window:
        assert self.process.window is not None
        return self.process.window

    def end(self) -> None:
        self.process.notices.put(_thread.exit)


@contextlib.contextmanager
def new_starter(
    flights: int = 32, nbytes: int = 1 << 30, grace: float | None = None
) -> Iterator[Starter]:
    """A starter for as long as the block lasts."""
    with pytest.MonkeyPatch.context() as patch:
        starter = Starter(patch, flights, nbytes, grace)
        try:
            yield starter
        finally:
            starter.end()


class Gate(Wrapper):
    """Gives an object out when its key is let through.

    Attributes:
        asked: The keys, in the order in which they were asked for.
        most: How many were asked for at a time, at most.
        cancelled: The keys whose get was cancelled.
        fail: Raised in place of the next answers, one each.
    """

    def __init__(self, connector: Any) -> None:
        super().__init__(connector)
        self.asked: list[str] = []
        self.now = self.most = 0
        self.cancelled: list[str] = []
        self.fail: list[Exception] = []
        self._open: set[str] = set()
        self._all = False

    def open(self, *keys: str) -> None:
        """Lets keys through, all of them if none is named."""
        self._all |= not keys
        self._open.update(keys)

    async def call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        if operation != "get":
            return await super().call(operation, *args, **kwargs)
        key = args[0]
        self.asked.append(key)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            while not (self._all or key in self._open):
                await asyncio.sleep(0.001)
            if self.fail:
                raise self.fail.pop(0)
            return await super().call(operation, *args, **kwargs)
        except asyncio.CancelledError:
            self.cancelled.append(key)
            raise
        finally:
            self.now -= 1


@contextlib.contextmanager
def gated_store() -> Iterator[tuple[pp.sync.Store, Gate]]:
    """A store behind a gate, without a cache, and its gate."""
    gate = Gate(pp.LocalConnector())
    with pp.sync.Store(f"gated-{next(_numbers)}", gate, cache_size=0) as store:
        yield store, gate
        gate.open()


def lazily(store: pp.sync.Store, objs: list[Any], **kwargs: Any) -> list[pp.Proxy[Any]]:
    """Proxies of objects, unresolved."""
    return store.proxy_batch(objs, populate_target=False, **kwargs)


def wait_until(condition: Callable[[], object]) -> None:
    """Returns when the condition holds; the timeout of the test ends it otherwise."""
    while not condition():
        time.sleep(0.002)


def fresh(thing: Any) -> Any:
    """What another process would get."""
    return pickle.loads(pickle.dumps(thing))
