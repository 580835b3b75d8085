"""The lease of a lifetime: how long it has, and who renews it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

from proxyplane._runtime.io_thread import IOThread, Spawned, io_thread
from proxyplane.exceptions import IOThreadError
from proxyplane.factory import StoreFactory

logger = logging.getLogger("proxyplane")

Factories = Sequence[StoreFactory[Any]]
_OFTEN = 3
"""Renewals in a period."""
_RETRIES = 30
"""Tries in a period, while they fail."""
_CALL_SECONDS = 30.0


class Leased(Protocol):
    """Whose lease it is."""

    def held(self) -> Factories:
        """Its objects."""
        ...

    def forget(self, factories: Factories) -> None:
        """Lets go of objects that are gone."""
        ...


class Renewal:
    """One lease, renewed on the library's loop for as long as there is something to renew.

    Time is counted by the monotonic clock, from before a renewal is asked for: the medium, which
    counts from when it is told, never ends a lease before this does.

    Args:
        leased: Whose it is.
        period: Seconds of the lease.
        renews: Whether it is renewed by itself.
    """

    def __init__(self, leased: Leased, period: float, renews: bool) -> None:
        self._leased = leased
        self._period = period
        self._renews = renews
        self._until = time.monotonic() + period
        self._empty = True
        self._spawned: tuple[IOThread, Spawned] | None = None
        self._ended = False

    def left(self) -> float:
        """Seconds until the lease ends. One with nothing in it is renewed by itself."""
        if self._renews and self._empty and not self._ended:
            self._until = max(self._until, time.monotonic() + self._period)
        return self._until - time.monotonic()

    def lease(self) -> float:
        """Seconds of the lease of an object that is put now."""
        left = max(self.left(), 0.001)
        return max(left, self._period) if self._renews else left

    def begin(self) -> None:
        """Sees to the renewals, from now on that there is something to renew."""
        self.left()
        self._empty = False
        if self._renews and self._spawned is None and not self._ended:
            thread = io_thread()
            self._spawned = thread, thread.spawn(self._run(), lambda _: None)

    def end(self) -> None:
        """Ends the renewals."""
        self._ended = True
        spawned, self._spawned = self._spawned, None
        if spawned is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                spawned[0].loop.call_soon_threadsafe(spawned[1].cancel)

    async def extend(self, until: float) -> None:
        """Lets the lease end then, by the monotonic clock, if that is later."""
        until = max(until, time.monotonic() + self.left())
        gone = await _lend(self._leased.held(), max(until - time.monotonic(), 0.001))
        self._until = max(self._until, until)
        self._leased.forget(gone)

    async def lend(self, factories: Factories) -> None:
        """Gives objects this lease."""
        if factories:
            await _lend(factories, self.lease())

    async def _run(self) -> None:
        pause = self._period / _OFTEN
        failed: Exception | None = None
        while not self._ended:
            await asyncio.sleep(pause)
            began = time.monotonic()
            if began >= self._until:
                self._lost(failed)
                return
            try:
                async with asyncio.timeout(min(self._until - began, _CALL_SECONDS)):
                    gone = await _lend(self._leased.held(), self.lease())
            except Exception as error:  # noqa: BLE001  to end here would end all that is held
                if isinstance(error, IOThreadError):
                    return  # the interpreter is exiting
                if failed is None:
                    logger.warning(
                        "a lease could not be renewed, which is tried again until it ends in "
                        "%.1f s: %s",
                        self._until - time.monotonic(),
                        error,
                    )
                failed = error
                pause = min(self._period / _RETRIES, max(self._until - time.monotonic(), 0.001))
                continue
            self._until = max(self._until, began + self._period)
            self._leased.forget(gone)
            failed, pause = None, self._period / _OFTEN

    def _lost(self, why: Exception | None) -> None:
        held = self._leased.held()
        self._ended = True
        self._spawned = None
        if held:
            logger.warning(
                "the lease of %d objects ended before it could be renewed: %s",
                len(held),
                why or "this process was stopped, or its loop was busy, for too long",
            )
        self._leased.forget(held)


async def _lend(factories: Factories, seconds: float) -> list[StoreFactory[Any]]:
    """Gives objects a lease; returns those that are gone."""
    groups: dict[str, list[StoreFactory[Any]]] = {}
    for factory in factories:
        groups.setdefault(factory.reference, []).append(factory)
    gone: list[StoreFactory[Any]] = []
    failed: Exception | None = None
    for group in groups.values():
        try:
            held = await group[0].store.extending([one.key for one in group], seconds).perform()
        except Exception as error:  # noqa: BLE001
            failed = error  # the objects of other stores are extended all the same
        else:
            gone += [one for one, is_held in zip(group, held, strict=True) if not is_held]
    if failed is not None:
        raise failed
    return gone
