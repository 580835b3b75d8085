"""One HTTP/1.1 connection, one request at a time; bodies go straight into the memory they are for.

Made for what this package's own endpoints say: answers with a Content-Length, or one that ends with
the connection (a stream of lines). Both the connector and an endpoint that asks another use it.

A body is received into a buffer of its size by `asyncio.BufferedProtocol`, without any copy of
Python's; with TLS the one that decrypting makes. What is sent goes in slices, each when the last
one is gone, so that a transport never holds a second copy of an object.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from typing import NamedTuple, cast

__all__ = ["SLICE", "Connection", "Head", "ProtocolError", "Tell", "new_buffer"]

Tell = Callable[[int], object] | None
"""Told how many bytes are done; must be quick, and never raise."""

SLICE = 1 << 18
_HEAD_BYTES = 1 << 16
_LARGE = 1 << 20
_HUGE_PAGES = 4 << 20
_LOOKS = 5  # at progress, within the time that a connection is patient


class ProtocolError(Exception):
    """The other side does not speak as an endpoint does."""


class Head(NamedTuple):
    """The beginning of an answer.

    Attributes:
        status: The HTTP status.
        fields: The headers, by their names in lower case.
        size: Bytes of the body; None for one that ends with the connection.
    """

    status: int
    fields: Mapping[str, str]
    size: int | None


def new_buffer(size: int) -> bytearray | mmap.mmap:
    """Private, writable memory for an object.

    Large ones get pages of their own, which cost nothing before they are written to and go back to
    the system at once.
    """
    if size < _LARGE:
        return bytearray(size)
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _HUGE_PAGES and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            made.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without them
    return made


class Connection(asyncio.BufferedProtocol):
    """A connection, to be made by ``loop.create_connection(lambda: Connection(...))``.

    Args:
        patience: Seconds without any progress after which it counts as lost.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.last_heard = 0.0
        self.reusable = True
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._space = bytearray(_HEAD_BYTES)  # of heads, and of what follows them at once
        self._start = self._end = 0
        self._target: memoryview | None = None
        self._filled = 0
        self._tell: Tell = None
        self._waiter: asyncio.Future[None] | None = None  # of the one who reads
        self._writable: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._error: BaseException | None = None
        self._busy = self._eof = self._paused = False
        self._left: int | None = 0  # of the body that is read; None for one without an end
        self._timer: asyncio.TimerHandle | None = None
        self._progress = (0, 0)
        self._received = self._sent = 0
        self._since = 0.0

    # -- requests -----------------------------------------------------------------------------

    async def request(
        self,
        head: bytes,
        body: Sequence[memoryview] | AsyncIterable[bytes | bytearray | memoryview] = (),
        *,
        bodiless: bool = False,
        tell: Tell = None,
    ) -> Head:
        """Sends a request and returns how the answer begins.

        An answer that comes before all of the body was sent ends the sending, and this connection
        cannot be used again.

        Args:
            head: The request line and the headers.
            body: What follows, of the size that the head says.
            bodiless: Whether the answer to this has no body, whatever its headers say.
            tell: Told how many bytes of the body have gone.

        Raises:
            OSError: The connection is lost, or there was no progress for as long as it is patient
                (TimeoutError).
            ProtocolError: What came is no answer.
        """
        self._check()
        self._busy = True
        self._since = self.last_heard = self._loop.time()
        self._watch()
        if not await self._send(head, body, tell):
            self.reusable = False
        return await self._read_head(bodiless)

    async def _send(
        self,
        head: bytes,
        body: Sequence[memoryview] | AsyncIterable[bytes | bytearray | memoryview],
        tell: Tell,
    ) -> bool:
        """Sends; returns False if an answer came before the end."""
        before = self._sent + len(head)
        if isinstance(body, Sequence) and sum([one.nbytes for one in body]) <= SLICE:
            self._write(b"".join((head, *body)))
            await self._drain()
            return True
        self._write(head)
        if isinstance(body, Sequence):
            for view in body:
                for at in range(0, view.nbytes, SLICE):
                    self._write(view[at : at + SLICE])
                    if not await self._drain():
                        return False
                    if tell is not None:
                        tell(self._sent - before)
        else:
            async for piece in body:
                self._write(piece)
                if not await self._drain():
                    return False
        return True

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        self._check()
        assert self._transport is not None
        self._sent += len(data)
        self._transport.write(data)

    async def _drain(self) -> bool:
        """Waits until the transport takes more; False if an answer is there meanwhile."""
        while self._writable is not None:
            await self._writable
        if self._error is not None and self._start == self._end:
            self._check()
        return self._start == self._end

    async def _read_head(self, bodiless: bool) -> Head:
        while True:
            end = self._space.find(b"\r\n\r\n", self._start, self._end)
            if end >= 0:
                text = bytes(self._space[self._start : end])
                self._start = end + 4
                if self._start == self._end:
                    self._start = self._end = 0
                status, fields = _parse(text)
                if status >= 200:
                    break
                continue  # 100 Continue, and the like
            if self._end == len(self._space):
                raise ProtocolError("the head of an answer is too long")
            await self._more()
        size: int | None = 0
        if not bodiless and status not in (204, 304):
            size = _size_of(fields)
        if size is None or fields.get("connection", "").lower() == "close":
            self.reusable = False
        self._left = size
        self._finish_if_read()
        return Head(status, fields, size)

    # -- bodies -------------------------------------------------------------------------------

    async def read_into(self, view: memoryview, tell: Tell = None) -> None:
        """Reads so many bytes of the body.

        Args:
            view: Where they go.
            tell: Told how many of them have come.

        Raises:
            OSError: The connection ended before.
        """
        size = len(view)
        if self._left is not None and size > self._left:
            raise ProtocolError("the body is shorter than was said")
        here = min(size, self._end - self._start)
        view[:here] = self._space[self._start : self._start + here]
        self._start += here
        if self._start == self._end:
            self._start = self._end = 0
        if here < size:
            self._target, self._filled, self._tell = view, here, tell
            try:
                while self._filled < size:
                    await self._more()
            finally:
                self._target = self._tell = None
        if self._left is not None:
            self._left -= size
            self._finish_if_read()

    @property
    def filled(self) -> int:
        """How many bytes have come of the last `read_into` that waited for any."""
        return self._filled

    async def read(self, size: int, tell: Tell = None) -> bytearray | mmap.mmap:
        """Reads so many bytes of the body into memory of their own; see `read_into`."""
        made = new_buffer(size)
        with memoryview(made) as view:
            await self.read_into(view, tell)
        return made

    async def read_rest(self, limit: int = 1 << 20) -> bytes:
        """Reads what is left of a short body."""
        if self._left is None or self._left > limit:
            raise ProtocolError("the body is longer than it can be")
        return bytes(await self.read(self._left)) if self._left else b""

    async def pieces(self) -> AsyncIterator[bytearray]:
        """The rest of the body, piece by piece."""
        while self._left:
            piece = bytearray(min(SLICE, self._left))
            with memoryview(piece) as view:
                await self.read_into(view)
            yield piece

    async def read_line(self) -> bytes:
        """The next line of a stream, without its end.

        Raises:
            OSError: The connection ended, or nothing came for as long as it is patient.
        """
        while True:
            end = self._space.find(b"\n", self._start, self._end)
            if end >= 0:
                line = bytes(self._space[self._start : end])
                self._start = end + 1
                if self._start == self._end:
                    self._start = self._end = 0
                return line
            if self._end == len(self._space):
                if not self._start:
                    raise ProtocolError("a line of a stream is too long")
                self._space[: self._end - self._start] = self._space[self._start : self._end]
                self._start, self._end = 0, self._end - self._start
            await self._more()

    def _finish_if_read(self) -> None:
        if self._left == 0:
            self._busy = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._start != self._end:
                self.reusable = False  # it says more than it was asked
            else:
                self._resume()  # so that its end is noticed

    # -- the state ----------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether it can take another request."""
        return self.reusable and not self._busy and self._error is None

    @property
    def lost(self) -> bool:
        """Whether it is gone, as far as the loop has noticed."""
        return self._error is not None

    def get_extra_info(self, name: str) -> object:
        """What the transport knows."""
        return None if self._transport is None else self._transport.get_extra_info(name)

    def be_patient(self, seconds: float) -> None:
        """Sets after how long without any progress it counts as lost, from now on."""
        self._patience = seconds
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._watch()

    def abort(self, reason: BaseException | None = None) -> None:
        """Closes at once; whoever reads or writes gets `reason`."""
        self._fail(reason or ConnectionAbortedError("closed on this side"))
        if self._transport is not None:
            self._transport.abort()

    async def aclose(self) -> None:
        """Closes, and returns when that is done."""
        self.abort()
        await asyncio.shield(self._closed)

    def _check(self) -> None:
        if self._error is not None:
            raise _again(self._error)

    async def _more(self) -> None:
        """Returns when something came."""
        if self._eof:
            raise ConnectionResetError("the other side closed the connection")
        self._check()
        assert self._transport is not None
        self._waiter = self._loop.create_future()
        self._resume()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience / _LOOKS, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._busy or self._error is not None or self._transport is None:
            return
        now = self._loop.time()
        reading = self._waiter is not None or self._writable is not None
        progress = (self._received, self._sent - self._transport.get_write_buffer_size())
        if progress != self._progress or not reading:
            self._progress, self._since = progress, now
        if now - self._since >= self._patience:
            self.abort(TimeoutError(f"no progress for {self._patience:g} s"))
        else:
            self._watch()

    def _fail(self, error: BaseException) -> None:
        if self._error is not None:
            return
        self._error = error
        self.reusable = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiter in (self._waiter, self._writable):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        self._writable = None

    # -- as asyncio calls it --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It begins."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport.set_write_buffer_limits(high=SLICE)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport writes."""
        target = self._target
        if target is not None and self._filled < len(target):
            return target[self._filled :]
        if self._end == len(self._space):
            # A transport that reads though it is paused; what it reads is of no use any more.
            self._loop.call_soon(self.abort, ProtocolError("more came than was asked for"))
            return memoryview(bytearray(sizehint if sizehint > 0 else 1))
        return memoryview(self._space)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """The transport has written."""
        self._received += nbytes
        self.last_heard = self._loop.time()
        target = self._target
        if target is not None and self._filled < len(target):
            self._filled += nbytes
            if self._tell is not None:
                self._tell(self._filled)
            if self._filled < len(target):
                return  # goes on
            if self._left != len(target):
                self._pause()  # until somebody wants the rest, into another target
        else:
            self._end += nbytes
            if not self._busy:
                self.abort(ProtocolError("something came without having been asked for"))
                return
            if self._end == len(self._space):
                self._pause()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        elif self._writable is not None and not self._writable.done():
            self._writable.set_result(None)  # an answer before its time
            self._writable = None

    def _pause(self) -> None:
        # Never out of `get_buffer`: uvloop would then read into nowhere.
        if not self._paused and self._transport is not None:
            self._paused = True
            if not self._transport.is_closing():
                self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def eof_received(self) -> None:
        """The other side has closed."""
        self._eof = True

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._fail(exc or ConnectionResetError("the other side closed the connection"))
        if not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        """The transport holds enough."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """There is room again."""
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)


def _again(error: BaseException) -> BaseException:
    """A new exception for each: a shared one would collect everybody's traceback."""
    if isinstance(error, ProtocolError):
        return ProtocolError(*error.args)
    if isinstance(error, TimeoutError):
        return TimeoutError(*error.args)
    made = ConnectionError("the connection was lost")
    made.__cause__ = error
    return made


def _parse(text: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = text.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
        raise ProtocolError("what answers does not speak HTTP/1.1")
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ProtocolError("a header without a colon")
        fields[name.strip().lower()] = value.strip()
    return int(words[1]), fields


def _size_of(fields: Mapping[str, str]) -> int | None:
    if "transfer-encoding" in fields:
        raise ProtocolError("an answer in chunks, which no endpoint gives")
    text = fields.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ProtocolError("a Content-Length that is no number")
    return int(text)
