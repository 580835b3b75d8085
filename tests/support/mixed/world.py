"""A store on one medium, and the operations that are done with it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import proxyplane as pp
from proxyplane.abc import SupportsNames

PATIENCE = 120.0
"""Seconds after which an operation is taken to hang."""

SIZES = (10, 1_000, 20_000, 100_000, 300_000)

Operation = Callable[["World"], Awaitable[None]]
OPERATIONS: list[tuple[Operation, frozenset[str], int]] = []


class World:
    """A store on one medium, open all the time, and who works with it.

    Args:
        name: Of the medium.
        url: Of the connector; empty for this process's memory.
        elsewhere: The other process.
    """

    def __init__(self, name: str, url: str, elsewhere: ProcessPoolExecutor) -> None:
        self.name = name
        self.dice = random.Random(name)
        self.store = pp.Store(
            f"mixed {name}", url or pp.LocalConnector(), cache_size=8, register=True
        )
        self.url = self.store.connector.url
        self.blocking = pp.sync.Store.of(self.store)
        self.process = elsewhere
        self.reaches_others = bool(url)
        self.threads = ThreadPoolExecutor(1)
        self.numbers = itertools.count()
        able = {
            "elsewhere": self.reaches_others,
            "names": isinstance(self.store.connector, SupportsNames),
            "leases": self.store.connector.takes_ttl,
        }
        possible = [one for one in OPERATIONS if all(able[need] for need in one[1])]
        self.operations = [one[0] for one in possible]
        self.weights = list(itertools.accumulate(one[2] for one in possible))
        self.first = self.dice.sample(self.operations, len(self.operations))

    def next_operation(self) -> Operation:
        """What to do next: each once, and then any."""
        if self.first:
            return self.first.pop()
        return self.dice.choices(self.operations, cum_weights=self.weights)[0]

    def body(self) -> bytes:
        """Some bytes, never the same."""
        return self.dice.randbytes(self.dice.choice(SIZES))

    def fresh(self) -> str:
        """A key that nobody had."""
        return f"{self.name} {next(self.numbers)}"

    async def elsewhere(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function in the other process."""
        return await asyncio.wrap_future(self.process.submit(function, *args))


def operation(*needs: str, seldom: bool = False) -> Callable[[Operation], Operation]:
    """Makes a function one of the operations, on media that can do what it needs."""

    def add(function: Operation) -> Operation:
        OPERATIONS.append((function, frozenset(needs), 1 if seldom else 10))
        return function

    return add


@contextlib.contextmanager
def raises(*kinds: type[BaseException]) -> Iterator[None]:
    """The block fails, and so."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"did not raise {kinds}")
