"""One connection: requests in, replies out, matched by their order.

redis-py makes the connection, and logs in. From then on the transport is ours: redis-py would copy
each reply two or three times, and stall the loop meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from redis import exceptions as redis_errors

from proxyplane.connectors.redis.link import Link
from proxyplane.connectors.redis.resp import SMALL, Parser, Piece, Reply, command, slices

# A command is handed to the transport in slices of this size. Until Python 3.11 a transport copies
# what it cannot send at once, and later ones keep it until it is sent: so no more than a slice is
# ever copied, no more than a slice stalls the loop, and a cancelled put leaves no more than this of
# the caller's memory to a dying transport. From 512 KiB up the size makes no difference in speed.
# A little more than a megabyte, so that one with what belongs to it is not cut.
SLICE: Final = (1 << 20) + (64 << 10)

# How often, in the time that a connection is patient, it looks whether it still sends.
_LOOKS: Final = 4

_PENDING: Final = object()


class Slot:
    """The place of one reply, in the order of the requests."""

    __slots__ = ("into", "size", "value", "waiter")

    def __init__(self, into: memoryview | None = None) -> None:
        self.value: Reply = _PENDING
        self.waiter: asyncio.Future[None] | None = None
        # Where the reply is to be written, if it is a long string of just this length.
        self.into = into
        self.size = 0 if into is None else len(into)

    def reply(self) -> Reply:
        """What came; raises it, if the server refused."""
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Wire(asyncio.BufferedProtocol):
    """One connection, which knows whether it is in step with the server.

    A caller who is cancelled leaves the place of its reply behind, and the reply is dropped when it
    comes. So a connection survives its callers.

    Args:
        link: The connection, made and logged in.
        patience: Seconds without any progress after which it counts as lost.

    Attributes:
        patience: The same.
        midway: Whether the server holds state for this caller, such as a transaction, so that no
            other one can use the connection.
        on_push: Called with what the server sends without having been asked.
        on_lost: Called when the connection is lost.
    """

    def __init__(self, link: Link, patience: float) -> None:
        self.patience = patience
        self.midway = False
        self.on_push: Callable[[Reply], object] | None = None
        self.on_lost: Callable[[], object] | None = None
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._transport = link.transport
        self._slots: deque[Slot] = deque()  # of replies that did not come
        self._unread: deque[Slot] = deque()  # those that `read` reads
        self._parser = Parser(self._on_reply, self._place, link.refusal)
        self._error: BaseException | None = None
        self._writable: asyncio.Future[None] | None = None  # while the transport is full
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._since = 0.0  # when something last came or went
        self._unsent = 0  # bytes that had not gone by then
        self._timer: asyncio.TimerHandle | None = None
        self._transport.set_protocol(self)

    # -- requests -----------------------------------------------------------------------------

    def request(self, data: bytes, count: int = 1) -> list[Slot]:
        """Sends small commands together, without waiting for anything; gives their places.

        Raises:
            redis.ConnectionError: The connection is lost.
        """
        self.check()
        slots = [Slot() for _ in range(count)]
        self._expect(slots)
        self._transport.write(data)
        return slots

    async def take(self, slot: Slot) -> Reply:
        """The reply of a request.

        Raises:
            redis.RedisError: The server refused, or the connection was lost.
            TimeoutError: Nothing came for as long as this connection is patient.
        """
        if slot.value is _PENDING:
            await self.arrival(slot)
        return slot.reply()

    async def arrival(self, slot: Slot) -> None:
        """Waits for a reply, and so for those before it.

        Raises:
            redis.ConnectionError: The connection was lost.
            TimeoutError: Nothing came for as long as this connection is patient.
        """
        if slot.value is not _PENDING:
            return
        self.check()
        slot.waiter = self._loop.create_future()
        try:
            await slot.waiter
        finally:
            slot.waiter = None
        if slot.value is _PENDING:
            raise self._lost()

    def afterwards(self, slot: Slot, call: Callable[[], object]) -> None:
        """Calls when the reply has come, whether anybody waits for it or not, or never will."""
        if slot.value is not _PENDING or self.lost:
            call()
        else:
            slot.waiter = self._loop.create_future()
            slot.waiter.add_done_callback(lambda _: call())

    async def exchange(self, data: bytes) -> Reply:
        """Sends one small command and takes its reply, in one step: `request` and `take`."""
        if self._error is not None:
            raise self._lost()
        slot = Slot()
        self._expect((slot,))
        self._transport.write(data)
        slot.waiter = self._loop.create_future()
        try:
            await slot.waiter
        finally:
            slot.waiter = None
        if slot.value is _PENDING:
            raise self._lost()
        return slot.reply()

    async def call(self, *words: bytes | str | int) -> Reply:
        """Sends one small command and takes its reply."""
        return await self.take(self.request(command(*words))[0])

    # -- for one caller who has the connection for itself ---------------------------------------

    async def send(
        self,
        pieces: Iterable[Piece],
        replies: int | Sequence[Slot],
        report: Callable[[int], object] | None = None,
    ) -> None:
        """Sends commands, without joining their pieces; `read` the replies in order.

        Args:
            pieces: The commands.
            replies: How many there will be, or their places.
            report: Told how many bytes have gone.

        Raises:
            TimeoutError: Nothing was taken for as long as this connection is patient.
            redis.ConnectionError: The connection is lost.
        """
        pieces = list(pieces)
        slots = [Slot() for _ in range(replies)] if isinstance(replies, int) else replies
        self._unread += slots
        self.check()
        self._expect(slots)
        left = size = sum(map(len, pieces))
        if left <= SMALL and self._writable is None:
            self._transport.write(b"".join(pieces))
            return
        try:
            for slice_ in slices(pieces, SLICE):
                for piece in slice_:
                    left -= len(piece)
                    self._transport.write(piece)
                slice_.clear()
                await self._drain()
                if report is not None:
                    report(size - left)
        except BaseException:
            # Half a command was sent. If it was all, it will happen, and so may what follows it.
            if left or self._transport.get_write_buffer_size():
                self.abort()
            raise
        finally:
            # A view held by a traceback would keep the caller's map open.
            slice_ = piece = None  # type: ignore[assignment]

    async def ask(self, *commands: tuple[Any, ...]) -> None:
        """Sends small commands together; `read` their replies in order."""
        await self.send([command(*words) for words in commands], len(commands))

    async def read(self) -> Reply:
        """The next reply; see `take`."""
        return await self.take(self._unread.popleft())

    async def read_few(self, count: int) -> tuple[list[Reply], Exception | None]:
        """The next replies, and the first refusal among them.

        Raises:
            redis.ConnectionError: The connection was lost.
            TimeoutError: They did not come.
        """
        replies: list[Reply] = []
        refusal: Exception | None = None
        for _ in range(count):
            try:
                replies.append(await self.read())
            except redis_errors.ResponseError as error:
                refusal = refusal or error
        return replies, refusal

    def tell(self, *words: bytes | str | int) -> None:
        """Sends a command to which the server replies by pushes; see `on_push`."""
        self.check()
        self._transport.write(command(*words))

    def leave(self) -> None:
        """The caller goes; replies that it did not read are dropped.

        They come all the same, but not into its memory, which would be held until then.
        """
        self._unread.clear()
        for slot in self._slots:
            slot.into = None
        if self._slots:
            self._parser.let_go()

    def settling(self) -> asyncio.Future[None]:
        """Done when all replies have come that are outstanding now, or the connection is lost.

        Only for who has the connection, and is not about to send something else on it.
        """
        # A place has one waiter, and the last one may have its own: so with one of ours behind.
        (slot,) = self.request(command("PING"))
        slot.waiter = self._loop.create_future()
        return slot.waiter

    @contextlib.contextmanager
    def lent(self) -> Iterator[int]:
        """The file descriptor of the socket, which nobody else uses inside the block."""
        self.check()
        self._transport.pause_reading()
        try:
            yield self._transport.get_extra_info("socket").fileno()
        finally:
            if not self._transport.is_closing():
                self._transport.resume_reading()

    # -- the state ----------------------------------------------------------------------------

    @property
    def owed(self) -> int:
        """How many replies are outstanding."""
        return len(self._slots)

    @property
    def bulk(self) -> int:
        """How many bytes of large replies are outstanding."""
        return sum(slot.size for slot in self._slots)

    @property
    def lost(self) -> bool:
        """Whether the connection is gone, as far as the loop has noticed."""
        return self._error is not None

    def check(self) -> None:
        """Raises redis.ConnectionError if the connection is lost."""
        if self._error is not None:
            raise self._lost()

    def refusal(self, text: str) -> Exception:
        """The exception for what a server says when it refuses."""
        return self._link.refusal(text)

    def abort(self, reason: BaseException | None = None) -> None:
        """Closes at once: what was not sent is never sent, and no reply is read any more."""
        self._transport.abort()
        self._fail(reason or ConnectionAbortedError("closed on this side"))

    async def aclose(self) -> None:
        """Closes as the protocol wants it; with TLS that needs an answer, which may not come."""
        self._transport.close()
        await asyncio.shield(self._closed)

    # -- as asyncio calls it --------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport writes."""
        return self._parser.room()

    def buffer_updated(self, nbytes: int) -> None:
        """The transport has written."""
        self._since = self._loop.time()
        try:
            self._parser.received(nbytes)
        except (redis_errors.InvalidResponse, MemoryError) as error:
            self.abort(error)

    def eof_received(self) -> None:
        """The server has closed; the transport follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._fail(exc or ConnectionResetError("the server closed the connection"))
        if not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        """The transport holds enough."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """There is room again."""
        self._since = self._loop.time()
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    # -- inside -------------------------------------------------------------------------------

    def _expect(self, slots: Iterable[Slot]) -> None:
        if not self._slots:
            self._since = self._loop.time()
        self._slots += slots
        if self._timer is None:
            self._look_later(self.patience)

    def _look_later(self, seconds: float) -> None:
        self._timer = self._loop.call_later(min(seconds, self.patience / _LOOKS), self._look)

    def _look(self) -> None:
        """Takes the connection for lost if there was no progress for too long."""
        self._timer = None
        if not self._slots and self._writable is None:
            self._parser.rest()
            return
        now = self._loop.time()
        unsent, before = self._link.unsent(), self._unsent
        self._unsent = unsent
        if unsent < before:
            self._since = now  # a slow link, which tells of no progress by itself
        left = self.patience - (now - self._since)
        if left <= 0:
            self.abort(TimeoutError())
        else:
            self._look_later(left)

    async def _drain(self) -> None:
        while self._writable is not None:
            # Shielded: the future is that of all who wait.
            await asyncio.shield(self._writable)
        self.check()

    def _place(self, size: int) -> memoryview | None:
        into = self._slots[0].into if self._slots else None
        return into if into is not None and len(into) == size else None

    def _on_reply(self, value: Reply) -> None:
        if not self._slots:
            if isinstance(value, Exception):
                self.abort(value)
                return
            if self.on_push is not None:
                self.on_push(value)
                return
            self.abort(redis_errors.InvalidResponse(f"the server sent {str(value)[:80]!r} unasked"))
            return
        slot = self._slots.popleft()
        slot.value = value
        if slot.waiter is not None and not slot.waiter.done():
            slot.waiter.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if self._error is not None:
            return
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        for slot in self._slots:
            if slot.waiter is not None and not slot.waiter.done():
                slot.waiter.set_result(None)
            slot.into = None
        self._slots.clear()
        self._parser.end()  # or its buffers would live as long as this does, in a circle
        self.resume_writing()
        if self.on_lost is not None:
            self.on_lost()

    def _lost(self) -> Exception:
        """A new exception for each: a shared one would collect everybody's traceback."""
        if isinstance(self._error, TimeoutError):
            return TimeoutError()
        if isinstance(self._error, redis_errors.RedisError):
            return copy.copy(self._error)
        error = redis_errors.ConnectionError("the connection was lost")
        error.__cause__ = self._error
        return error
