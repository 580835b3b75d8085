"""Waiting for objects: one subscription per event loop, whatever the number of waiters.

A waiter is a future in a table. One task per loop, which lives while somebody waits, does the
rest: it subscribes to what is waited for, waits for the acknowledgement, and only then looks
whether the objects are there; what is not there yet sleeps until its message arrives. Publish and
subscribe deliver at most once, so nothing depends on a message: whenever the connection was
replaced everything is subscribed and looked at again, and every `BACKSTOP_SECONDS` in any case.

Each key has a channel of its own, named as the key. With one channel for the whole namespace every
waiting process would be sent every message: 5,000 processes that wait for an object each would
cost the server 25 million messages instead of 5,000. The price, a subscription per key, is paid in
batches, and given back in batches too. In a cluster any node hears what is published at any other,
so one subscription does there too, and it has not to follow the slots.

The connection is a `Wire`, not a `PubSub` of redis-py: that one reconnects and subscribes again
without a word, and just then the waiters must be looked at again.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import logging
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from redis import exceptions as redis_errors

from proxyplane.connectors.redis.errors import copied, is_passing, map_errors
from proxyplane.connectors.redis.later import WAS_SET
from proxyplane.connectors.redis.resp import Reply
from proxyplane.connectors.redis.url import RedisOptions
from proxyplane.connectors.redis.wire import Wire
from proxyplane.exceptions import (
    ConnectorClosedError,
    ConnectorError,
    ConnectorLostError,
    ObjectLostError,
    ProxyPlaneError,
)

logger = logging.getLogger("proxyplane")

# How often all waiters are looked at though no message came. It costs one command per batch. A
# connection that does not answer for as long is taken for lost.
BACKSTOP_SECONDS = 5.0
# How long the connection is kept when nobody waits any more: often the next wait follows.
IDLE_SECONDS = 1.0
# Between two tries to reach the server.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
# Keys in one command. The acknowledgements of a batch fit in the smallest sensible output buffer.
BATCH = 200
# How long it may take to find out that an object is not there, for those who do not want to wait.
LOOK_SECONDS = 1.0


class _Interest:
    """Those who wait for one key."""

    __slots__ = ("asleep", "futures")

    def __init__(self) -> None:
        # Each gets the error to raise, or None when the object is there. (An exception set on the
        # future of a waiter who was cancelled would be reported as never retrieved.)
        self.futures: set[asyncio.Future[Exception | None]] = set()
        # Whether the object was seen missing after the subscription was acknowledged: from then
        # on a message is believed without another look.
        self.asleep = False


class Source(Protocol):
    """What is asked for the objects: a server, or a cluster."""

    async def look_up(self, names: Sequence[bytes]) -> list[tuple[bool, bool]]:
        """For each registered key whether its object is there, and whether its record is."""
        ...

    def extra(self) -> AbstractAsyncContextManager[Wire]:
        """A connection that hears what is published to the channels of the keys."""
        ...


class Waiters:
    """All that wait in one event loop.

    Args:
        source: Where the objects are to come.
        options: How to connect; names the server in messages.
    """

    def __init__(self, source: Source, options: RedisOptions) -> None:
        self._source = source
        self._options = options
        self._waiting: dict[bytes, _Interest] = {}
        self._fresh: dict[bytes, None] = {}  # to be subscribed and looked at; ordered
        self._round = 0  # how many of these are left of those that the backstop put there
        self._subscribed: set[bytes] = set()  # acknowledged, on the present connection
        self._stir = asyncio.Event()  # something of the state changed
        self._task: asyncio.Task[None] | None = None
        self._pause = FIRST_PAUSE
        self._trouble: ProxyPlaneError | None = None  # why the server cannot be reached
        self._closed = False

    async def wait(self, name: bytes, timeout: float | None) -> None:
        """Returns when the key of this name holds an object; see `DeferrableConnector.wait`."""
        if self._closed:
            raise self._closed_error()
        if timeout is not None and timeout <= 0:
            await self._glance(name)
            return
        interest = self._waiting.get(name)
        if interest is None:
            interest = self._waiting[name] = _Interest()
        future = asyncio.get_running_loop().create_future()
        interest.futures.add(future)
        if not interest.asleep:
            self._look_again(name)
        self._ensure_task()
        try:
            async with asyncio.timeout(timeout):
                error = await future
        except TimeoutError:
            raise self._timeout_error(name, timeout) from self._trouble
        finally:
            interest.futures.discard(future)
            if not interest.futures and self._waiting.get(name) is interest:
                del self._waiting[name]
                self._left()
        if error is not None:
            raise error

    async def aclose(self) -> None:
        """Ends every wait with `ConnectorClosedError`, and the connection."""
        self._closed = True
        for name in list(self._waiting):
            self._end(name, self._closed_error())
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _glance(self, name: bytes) -> None:
        """A wait without waiting."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                ((there, registered),) = await self._source.look_up([name])
        except TimeoutError:
            raise self._timeout_error(name, 0) from None
        if not there:
            raise self._timeout_error(name, 0) if registered else self._lost_error(name)

    # -- the table ----------------------------------------------------------------------------

    def _look_again(self, name: bytes) -> None:
        self._fresh[name] = None
        self._stir.set()

    def _left(self) -> None:
        if not self._waiting:
            self._stir.set()

    def _end(self, name: bytes, error: Exception | None = None) -> None:
        """Wakes everyone who waits for a key."""
        interest = self._waiting.pop(name, None)
        for future in interest.futures if interest is not None else ():
            if not future.done():
                future.set_result(error and copied(error))
        self._left()  # after them: they have waited, and the task has not

    def _end_all(self, error: Exception) -> None:
        for name in list(self._waiting):
            self._end(name, error)

    # -- the task -----------------------------------------------------------------------------

    def _ensure_task(self) -> None:
        if self._task is None or self._task.done():
            loop = asyncio.get_running_loop()
            # In a context of its own: that of the first waiter would live as long as the task.
            self._task = loop.create_task(self._run(), context=contextvars.Context())
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if task is self._task:
            self._task = None
            if self._waiting:  # it was cancelled by a stranger, or has a bug: nobody must hang
                lost = ConnectorLostError("the task that listens to Redis was ended")
                lost.__cause__ = error
                self._end_all(lost)

    async def _run(self) -> None:
        while self._waiting:
            try:
                await self._serve()
                self._reached()
            except ProxyPlaneError as error:
                if not is_passing(error, cluster=self._options.cluster):
                    self._end_all(error)
                    continue
                self._not_reached(error)
                # Not all processes at the same moment.
                await asyncio.sleep(self._pause * random.uniform(0.5, 1))  # noqa: S311
                self._pause = min(2 * self._pause, LONGEST_PAUSE)

    async def _serve(self) -> None:
        """Returns when nobody waits any more; raises when the connection is lost."""
        self._subscribed.clear()
        for interest in self._waiting.values():
            interest.asleep = False
        # What is there already, or gone, needs no subscription.
        with map_errors(self._options):  # as `extra` does for what follows
            await self._look(list(self._waiting))
        if not self._waiting:
            return
        async with self._source.extra() as wire:
            wire.on_push = self._hear
            wire.on_lost = self._stir.set
            await self._follow(wire)

    async def _follow(self, wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        self._fresh = dict.fromkeys(self._waiting)
        self._round = len(self._fresh)
        due = loop.time() + BACKSTOP_SECONDS
        while self._waiting or await self._linger():
            wire.check()
            late = due <= loop.time()
            if late and self._round <= 0:
                self._prepare_backstop(wire)
            if late or self._round > 0:
                # Counted from the end of a round: one may take longer, on a slow link or with
                # many waiters, and the last of them must have their turn.
                due = loop.time() + BACKSTOP_SECONDS
            if self._fresh:
                await self._subscribe_and_look(wire)
                self._reached()
            else:
                await self._nap(due - loop.time())

    async def _linger(self) -> bool:
        """Whether somebody comes soon."""
        await self._nap(IDLE_SECONDS)
        return bool(self._waiting)

    async def _nap(self, seconds: float) -> None:
        """Sleeps until something changes, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stir.wait()
        self._stir.clear()

    def _prepare_backstop(self, wire: Wire) -> None:
        self._fresh |= dict.fromkeys(self._waiting)
        self._round = len(self._fresh)
        # To subscribe once more is acknowledged too, by a connection that is alive.
        self._subscribed.discard(next(iter(self._waiting), b""))
        if idle := self._subscribed - self._waiting.keys():
            self._subscribed -= idle
            wire.tell("UNSUBSCRIBE", *idle)

    async def _subscribe_and_look(self, wire: Wire) -> None:
        batch = list(itertools.islice(self._fresh, BATCH))
        for name in batch:
            del self._fresh[name]
        self._round -= len(batch)
        new = {name for name in batch if name in self._waiting} - self._subscribed
        if new:
            wire.tell("SUBSCRIBE", *new)
            async with _in_time():
                while not new <= self._subscribed:
                    await self._stir.wait()
                    self._stir.clear()
                    wire.check()
        await self._look(batch)

    async def _look(self, names: Iterable[bytes]) -> None:
        """Wakes those whose object is there or gone."""
        left = (name for name in names if name in self._waiting)
        while batch := list(itertools.islice(left, BATCH)):
            async with _in_time():
                found = await self._source.look_up(batch)
            for name, (there, registered) in zip(batch, found, strict=True):
                if there:
                    self._end(name)
                elif not registered:
                    self._end(name, self._lost_error(name))
                elif (interest := self._waiting.get(name)) is not None:
                    interest.asleep = name in self._subscribed

    def _hear(self, push: Reply) -> None:
        """Takes what the server sends."""
        kind, name, what = push
        if kind == b"subscribe":
            self._subscribed.add(name)
            self._stir.set()
        elif kind == b"message" and name in self._waiting:
            if what == WAS_SET and self._waiting[name].asleep:
                self._end(name)
            else:
                self._look_again(name)

    # -- what is told -------------------------------------------------------------------------

    def _reached(self) -> None:
        self._pause = FIRST_PAUSE
        if self._trouble is not None:
            self._trouble = None
            logger.info("Redis at %s is reached again", self._options.where)

    def _not_reached(self, error: ProxyPlaneError) -> None:
        if self._trouble is None:
            count = len(self._waiting)
            logger.warning("%s; trying again, for objects still waited for: %d", error, count)
        self._trouble = error

    def _key(self, name: bytes) -> str:
        return name.decode("utf-8", "surrogatepass").removeprefix(f"{self._options.namespace}:")

    def _timeout_error(self, name: bytes, timeout: float | None) -> TimeoutError:
        return TimeoutError(
            f"the object of key {self._key(name)!r} did not come to Redis at "
            f"{self._options.where} within {timeout:g} s"
        )

    def _lost_error(self, name: bytes) -> ObjectLostError:
        return lost_error(self._key(name), self._options)

    def _closed_error(self) -> ConnectorError:
        return ConnectorClosedError(f"the connector of {self._options.where} was closed")


def lost_error(key: str, options: RedisOptions) -> ObjectLostError:
    """The error of whoever sets or waits for a key that the server does not know."""
    return ObjectLostError(
        f"Redis at {options.where} knows no key {key!r}, neither set nor still to be set",
        hint="it was evicted, its lease ended, the server was restarted empty, or this is another "
        "server",
    )


@contextlib.asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """Takes a connection for lost that is silent for the length of the backstop."""
    try:
        async with asyncio.timeout(BACKSTOP_SECONDS):
            yield
    except TimeoutError:
        raise redis_errors.ConnectionError("the connection is silent") from None
