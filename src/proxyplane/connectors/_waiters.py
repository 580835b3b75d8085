"""Who waits for which name, on any loop of this process; woken from any thread.

A wake-up carries nothing: it tells a waiter to look at the medium again. So one too many does no
harm, and the order that loses none is always the same: join, look, sleep, look. Whoever stores an
object stores it first and wakes then.

There is no lock. Each loop's table is changed on that loop's thread only; other threads read a copy
of it, and a copy of a dict is one atomic call. With a lock, a coroutine that is collected while its
thread holds it would wait for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TypeVar

from proxyplane._runtime.fork import on_fork

T = TypeVar("T")


class Waiter:
    """One wait on one loop; made by `Waiters.join` on that loop's thread."""

    __slots__ = ("_all", "_loop", "_woken", "name", "owner")

    def __init__(self, everyone: Waiters, name: str, owner: object) -> None:
        self._all = everyone
        self._loop = asyncio.get_running_loop()
        self._woken = self._loop.create_future()
        self.name = name
        self.owner = owner

    async def sleep(self) -> None:
        """Returns when somebody has woken this waiter since it joined, or since the last sleep."""
        await self._woken
        self._woken = self._loop.create_future()

    def wake(self) -> None:
        """Ends the sleep; on the loop's thread only."""
        if not self._woken.done():
            self._woken.set_result(None)

    def leave(self) -> None:
        """Is not woken any more. Must be called, whatever ended the wait."""
        self._all._remove(self._loop, self)


Table = dict[str, dict[Waiter, None]]


class Waiters:
    """The waiters on one medium, by the name they wait for."""

    def __init__(self) -> None:
        self._abandoned: list[object] = []
        self._tables: dict[asyncio.AbstractEventLoop, Table] = {}
        on_fork(self)

    def after_fork_in_child(self) -> None:
        """They wait in the parent. Kept, since to drop their loops would close what is shared."""
        self._abandoned.append(self._tables)
        self._tables = {}

    def join(self, name: str, owner: object) -> Waiter:
        """Registers a waiter of the running loop; look at the medium after this, then sleep.

        Args:
            name: What it waits for.
            owner: Whom `wake_owned` names to wake it.
        """
        waiter = Waiter(self, name, owner)
        table = self._tables.setdefault(waiter._loop, {})
        table.setdefault(name, {})[waiter] = None
        return waiter

    def _remove(self, loop: asyncio.AbstractEventLoop, waiter: Waiter) -> None:
        table = self._tables.get(loop, {})
        named = table.get(waiter.name, {})
        named.pop(waiter, None)
        if not named:
            table.pop(waiter.name, None)
            if not table:
                self._tables.pop(loop, None)

    def names(self) -> list[str]:
        """What somebody waits for now, with repetitions if on several loops."""
        found: list[str] = []
        for loop, table in self._tables.copy().items():
            if loop.is_closed():
                self._tables.pop(loop, None)  # it was closed under its waiters
            else:
                found += table.copy()
        return found

    def wake(self, names: Iterable[str]) -> None:
        """Wakes everyone who waits for one of the names. From any thread."""
        names = list(names)
        for loop, table in self._tables.copy().items():
            hit = [name for name in names if name in table]
            if hit:
                self._call(loop, _wake_named, table, hit)

    def wake_all(self) -> None:
        """Wakes everyone. From any thread."""
        for loop, table in self._tables.copy().items():
            self._call(loop, _wake_owned, table, None)

    def wake_owned(self, owner: object) -> None:
        """Wakes everyone who joined with this owner. From any thread."""
        for loop, table in self._tables.copy().items():
            self._call(loop, _wake_owned, table, owner)

    def _call(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Callable[[Table, T], object],
        table: Table,
        argument: T,
    ) -> None:
        if asyncio._get_running_loop() is loop:
            function(table, argument)
            return
        try:
            loop.call_soon_threadsafe(function, table, argument)
        except RuntimeError:  # it is closed, and with it whoever waited there
            self._tables.pop(loop, None)


def _wake_named(table: Table, names: list[str]) -> None:
    for name in names:
        for waiter in table.get(name, ()):
            waiter.wake()


def _wake_owned(table: Table, owner: object) -> None:
    for named in table.values():
        for waiter in named:
            if owner is None or waiter.owner is owner:
                waiter.wake()


@contextlib.asynccontextmanager
async def deadline(
    key: str, timeout: float | None, *, since: float | None = None
) -> AsyncIterator[None]:
    """Ends what is inside when it is too late; what is not suspended once never is.

    Args:
        key: What it waits for.
        timeout: Seconds that it may take; None for any.
        since: Time of the running loop from which they count, by default now.

    Raises:
        TimeoutError: It was too late.
    """
    if since is None:
        since = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(None if timeout is None else since + timeout) as scope:
            yield
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise too_late(key, timeout) from error


def too_late(key: str, timeout: float | None) -> TimeoutError:
    """The error of a wait that took `timeout` seconds."""
    return TimeoutError(f"the object of {key!r} did not come within {timeout} s")
