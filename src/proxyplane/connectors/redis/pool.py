"""The connections of one event loop: one that all share for what is small, others for one caller.

A small request goes out at once on the shared connection, whoever else waits there for replies: a
hundred of them cost little more than one. What is large, or leaves a state at the server, gets a
connection for itself, so that nobody waits behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Final

from proxyplane.connectors.redis.errors import copied, map_errors
from proxyplane.connectors.redis.link import connect
from proxyplane.connectors.redis.redis_py import new_wire
from proxyplane.connectors.redis.resp import Reply
from proxyplane.connectors.redis.url import RedisOptions
from proxyplane.connectors.redis.wire import Slot, Wire
from proxyplane.exceptions import (
    ConnectorClosedError,
    ConnectorError,
    ConnectorLostError,
    ConnectorUnavailableError,
)

# Requests that are on the way together on the shared connection, and as many groups of them: the
# server keeps the replies that nobody has read yet, of up to a megabyte each (`transfer.FIRST`).
TOGETHER: Final = 64
# Bytes that a caller left behind and that are worth waiting for; above it is cheaper to connect.
_LEFT_BEHIND: Final = 8 << 20
_CLOSE_SECONDS = 1.0


class Pool:
    """The connections of one event loop, made on demand.

    Args:
        options: How to connect.
        tls: For ``rediss``.
    """

    def __init__(self, options: RedisOptions, tls: ssl.SSLContext | None) -> None:
        self._options = options
        self._tls = tls
        self._room = asyncio.Semaphore(options.max_connections)
        self._idle: list[Wire] = []
        self._busy: set[Wire] = set()
        self._unsettled: set[asyncio.Future[None]] = set()  # see `hold`
        self._shared: Wire | None = None
        self._sharing = asyncio.Lock()
        self._refused: ConnectorError | None = None  # why it could not be made, the last time
        self._turn = asyncio.Semaphore(TOGETHER)
        self._closed = False

    async def request(self, data: bytes) -> Reply:
        """Sends one small command on the shared connection and returns its reply.

        A caller who is cancelled after the first step has sent it all the same.

        Raises:
            ConnectorError: As for `wire`, or the server refused.
        """
        wire = self._shared
        if wire is None or wire.lost or wire.owed >= TOGETHER or self._unsettled:
            (reply,) = await self.requests(data, 1)
            return reply
        # The same by hand: in a get of 1 KB the steps of `requests` are most of the library's time.
        try:
            return await wire.exchange(data)
        except Exception:
            with self._mapped():
                raise

    async def requests(
        self,
        data: bytes,
        count: int,
        left: Callable[[Sequence[Slot]], object] | None = None,
        *,
        changes: bool = False,
    ) -> list[Reply]:
        """Sends small commands together; a refusal in place of a reply is raised at the end.

        Args:
            data: The commands.
            count: How many they are.
            left: Called with the places of the replies when these have come, if the caller was
                cancelled after the commands were sent.
            changes: Whether they change something; see `hold`.
        """
        if not count:
            return []
        if self._unsettled:
            await self._settle()
        await self._turn.acquire()
        wire = self._shared
        last: Slot | None = None
        slots: list[Slot] = []
        arrived: Callable[[], object] = self._turn.release
        try:
            if wire is None or wire.lost:
                wire = await self._share()
            try:
                slots = wire.request(data, count)
                last = slots[-1]
                # The last: then the others are there, too.
                await wire.arrival(last)
                return [slot.reply() for slot in slots]
            except Exception:
                with self._mapped():
                    raise
        except asyncio.CancelledError:
            if left is not None:
                arrived = partial(self._leave, left, slots)
            if changes:
                self.hold(wire)
            raise
        finally:
            if wire is None or last is None:
                self._turn.release()
            else:  # a reply that is left behind is on its way like any other
                wire.afterwards(last, arrived)

    def _leave(self, left: Callable[[Sequence[Slot]], object], slots: Sequence[Slot]) -> None:
        self._turn.release()
        left(slots)

    def hold(self, wire: Wire | None = None) -> None:
        """Lets further requests wait until the replies that are outstanding here have come.

        For a caller who was cancelled when all was sent: what was sent takes effect, and not after
        what this caller asks for next, which may go over another connection.

        Args:
            wire: The connection; by default the shared one.
        """
        wire = wire or self._shared
        if wire is not None and wire.owed:
            # Asked for now: soon somebody else may send something on it, bit by bit.
            settled = wire.settling()
            self._unsettled.add(settled)
            settled.add_done_callback(self._unsettled.discard)

    async def _settle(self) -> None:
        await asyncio.wait(set(self._unsettled))

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            with map_errors(self._options):
                yield
        except (ConnectorLostError, ConnectorUnavailableError) as error:
            self._check_lost(error)
            raise

    def forget(self, data: bytes, wire: Wire | None = None) -> None:
        """Sends one small command behind all others of a connection, and does not wait.

        Args:
            data: The command.
            wire: The connection; by default the shared one.
        """
        wire = wire or self._shared
        if wire is not None and not wire.lost:
            wire.request(data)

    @contextlib.asynccontextmanager
    async def wire(self, *, changes: bool = False) -> AsyncIterator[Wire]:
        """A connection for one caller; waits when all are in use.

        Args:
            changes: Whether what is sent changes something; see `hold`.

        Raises:
            ConnectorUnavailableError: None can be made.
            ConnectorLostError: It broke inside the block.
            ConnectorClosedError: The pool was closed, before or meanwhile.
        """
        async with self._room:
            self._check_open()
            if self._unsettled:
                await self._settle()
            wire = self._take()
            if wire is None:
                wire = await self._connect()
            try:
                async with self._using(wire):
                    yield wire
            except asyncio.CancelledError:
                if changes:
                    self.hold(wire)
                raise
            finally:
                # No await from here on: a task can be cancelled only where it waits.
                wire.leave()
                if wire.midway or wire.bulk > _LEFT_BEHIND or self._closed or wire.lost:
                    wire.abort()
                else:
                    self._idle.append(wire)

    @contextlib.asynccontextmanager
    async def extra(self) -> AsyncIterator[Wire]:
        """A new connection, not counted as one of the pool's, which ends with the block.

        For what holds a connection for long. Raises what `wire` raises.
        """
        self._check_open()
        wire = await self._connect()
        try:
            async with self._using(wire):
                yield wire
        finally:
            wire.abort()

    @contextlib.asynccontextmanager
    async def _using(self, wire: Wire) -> AsyncIterator[None]:
        self._busy.add(wire)
        try:
            with self._mapped():
                yield
        finally:
            self._busy.discard(wire)

    def _check_lost(self, error: Exception) -> None:
        self._check_open()  # closed by you, not lost
        if isinstance(error, ConnectorLostError):
            # The idle ones may have ended the same way. If that was without a word, each would
            # cost the next callers a time-out.
            self._drop_idle()

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectorClosedError(f"the connector of {self._options.where} was closed")

    def _take(self) -> Wire | None:
        self._idle = [wire for wire in self._idle if not wire.lost]
        if not self._idle:
            return None
        # The one used last: those at the bottom stay unused, and the server may drop them. But
        # nobody waits for what others have left behind, if it can be helped.
        place = max(range(len(self._idle)), key=lambda i: (not self._idle[i].owed, i))
        return self._idle.pop(place)

    def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for wire in idle:
            wire.abort()
        if self._shared is not None and not self._shared.owed:
            self._shared.abort()

    async def _share(self) -> Wire:
        """The shared connection; one caller makes it, and what comes of it is the others' too."""
        before = self._refused
        async with self._sharing:
            self._check_open()
            if self._shared is None or self._shared.lost:
                if self._refused is not None and self._refused is not before:
                    # To try it one after another would take everyone's time-out for the last.
                    raise copied(self._refused)
                try:
                    self._shared = await self._connect()
                except ConnectorError as error:
                    self._refused = copied(error)
                    raise
            return self._shared

    async def _connect(self) -> Wire:
        try:
            with map_errors(self._options, connecting=True):
                link = await connect(self._options, self._tls)
        except (ConnectorLostError, ConnectorUnavailableError) as error:
            self._check_lost(error)
            raise
        wire = new_wire(link, self._options)
        if self._closed:
            wire.abort()
            self._check_open()
        return wire

    def abort(self) -> None:
        """Closes every connection at once."""
        self._closed = True
        shared = [self._shared] if self._shared is not None else []
        for wire in [*self._busy, *self._idle, *shared]:
            wire.abort()

    async def aclose(self) -> None:
        """Closes every connection; callers that wait or are served get ConnectorClosedError."""
        self._closed = True
        idle, self._idle = self._idle, []
        if self._shared is not None:
            (self._busy.add if self._shared.owed else idle.append)(self._shared)
        for wire in self._busy:
            wire.abort()
        try:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await asyncio.gather(*(wire.aclose() for wire in idle))
        finally:  # also when this is cancelled, as it is on the library's loop at exit
            for wire in idle:
                wire.abort()
