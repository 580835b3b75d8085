"""Connections for threads that block: one call at a time on each, with no event loop.

A small call through the library's loop costs two switches of threads, more than the way to the
server and back. So a thread that blocks anyway takes one of a few connections for the time of its
call. When all of them are taken, the call goes through the loop, where any number of calls share
one connection.
"""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import ssl
import struct
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Final

from redis import exceptions as redis_errors

from proxyplane._runtime.fork import on_fork
from proxyplane._runtime.workers import Workers
from proxyplane.connectors.redis.errors import map_errors
from proxyplane.connectors.redis.link import connect_blocking, tls_context, unsent
from proxyplane.connectors.redis.resp import ROOM, SMALL, Parser, Piece, Reply, command, slices
from proxyplane.connectors.redis.transfer import Limit
from proxyplane.connectors.redis.url import RedisOptions
from proxyplane.exceptions import ConnectorClosedError, IOThreadError

POSSIBLE: Final = hasattr(select, "poll")  # not on Windows
# As many threads as that do not wait for the interpreter lock at one time anyway.
MOST: Final = 8
# How long a caller who is interrupted (Ctrl-C) waits until what it sent has taken effect.
CLEAN_UP_SECONDS: Final = 2.0
# What goes in one call: with TLS the time-out is for the whole of it.
_TLS_SLICE: Final = 64 << 10

_LOST = (redis_errors.RedisError, OSError, EOFError)
_connecting = Workers(MOST)


class _Seat:
    """The right to one connection, given back by whatever becomes of its holder."""

    __slots__ = ("__weakref__",)


class BlockingWire:
    """One connection that is logged in, used by one thread at a time.

    Args:
        sock: The connection; blocking.
        refusal: Makes the exception for what the server says when it refuses.
        patience: Seconds without any progress after which it counts as lost.
        seat: Held until it is closed.
    """

    def __init__(
        self,
        sock: socket.socket,
        refusal: Callable[[str], Exception],
        patience: float,
        seat: object,
    ) -> None:
        self._socket = sock
        self._seat: object = seat
        self._replies: list[Reply] = []
        # No circle: what nobody refers to any more is closed at once.
        self._parser = Parser(self._replies.append, _nowhere, refusal)
        self._sent = 0
        self._all_sent = False
        self.closed = False
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._whole = 0
        self._slice = 1 << 30
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(patience)
            self._slice = _TLS_SLICE
        else:
            # Not `settimeout`, which makes each call of the system two.
            self._whole = socket.MSG_WAITALL
            sock.settimeout(None)
            limit = struct.pack("@ll", int(patience), int(patience % 1 * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def __del__(self) -> None:
        self.close()

    @property
    def stale(self) -> bool:
        """Whether the server closed it, or sent what nobody asked for."""
        return bool(self._poll.poll(0))

    def exchange(self, pieces: Sequence[Piece], size: int, count: int) -> list[Reply]:
        """Sends commands without joining what is large, and takes their replies.

        After an exception it is of no use any more.

        Args:
            pieces: The commands.
            size: Their bytes.
            count: How many replies there will be.

        Raises:
            OSError: The connection is lost, or (TimeoutError) made no progress.
            redis.RedisError: The same, or what came is not RESP.
        """
        self._sent = size
        self._all_sent = False
        try:
            if size <= SMALL:
                self._socket.sendall(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            else:
                for group in slices(pieces, self._slice):
                    for piece in group:
                        self._socket.sendall(piece)
        except BlockingIOError:  # what the kernel calls it
            raise TimeoutError from None
        self._all_sent = True
        parser, replies = self._parser, self._replies
        while len(replies) < count:
            got = self._receive(parser.room())
            try:
                parser.received(got)
            except MemoryError as error:  # for a string that nobody can hold
                raise redis_errors.InvalidResponse("the server sent too much") from error
        if len(replies) > count:
            raise redis_errors.InvalidResponse("the server sent more than it was asked for")
        found = replies[:]
        replies.clear()
        return found

    def _receive(self, room: memoryview) -> int:
        flags = self._whole if len(room) > ROOM else 0
        before = self._sent
        while True:
            try:
                got = self._socket.recv_into(room, 0, flags)
            except (BlockingIOError, TimeoutError):
                # A slow link is no dead one; the kernel has taken all, and sends it still.
                left = unsent(self._socket.fileno())
                if not left or left >= before:
                    raise TimeoutError from None
                before = left
            else:
                if not got:
                    raise ConnectionResetError("the server closed the connection")
                return got

    def finish(self, last: bytes | None) -> bool:
        """Waits until the server has done what it was sent, and closes.

        A call was interrupted, so nothing is known of its replies. But a server that has read all
        that it was sent hangs up.

        Args:
            last: A command to be done behind all others, if they were sent for certain.

        Returns:
            False if that takes too long.
        """
        give_up = time.monotonic() + CLEAN_UP_SECONDS
        trash = bytearray(ROOM)
        try:
            if last is not None and self._all_sent:
                self._socket.settimeout(CLEAN_UP_SECONDS)
                self._socket.sendall(last)
            # With TLS too: it is the bare connection from here on.
            self._socket.shutdown(socket.SHUT_WR)
            while (left := give_up - time.monotonic()) > 0:
                self._socket.settimeout(left)
                if not self._socket.recv_into(trash):
                    return True
        except TimeoutError:
            return False
        except OSError:
            return True
        finally:
            self.close()
        return False

    def end(self) -> None:
        """Ends the call of another thread on this connection; that thread closes it."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # past TLS, which is in use

    def close(self) -> None:
        """Gives back the descriptor; no other process that has it is disturbed."""
        self.closed = True
        self._socket.close()
        self._seat = None


def _nowhere(size: int) -> None:
    return None


class BlockingPool:
    """The connections for threads that block, of one connector in one process.

    There is no lock, only single calls of lists and sets: a finaliser or the handler of a signal
    may come here in the middle of anything.

    Args:
        options: How to connect.
    """

    def __init__(self, options: RedisOptions) -> None:
        self._options = options
        self._tls: ssl.SSLContext | None = None
        self._most = min(MOST, options.max_connections)
        self._closed = False
        self._seats: set[weakref.ref[_Seat]] = set()
        self._made: set[weakref.ref[BlockingWire]] = set()
        self._idle: list[BlockingWire] = []
        # The server's maxmemory in bytes, 0 for none or unknown; None until asked for.
        self.limit: Limit | None = None
        on_fork(self)

    def after_fork_in_child(self) -> None:
        """The connections are the parent's, which goes on using them."""
        for wire in self._alive():
            wire.close()
        self._seats, self._made, self._idle = set(), set(), []
        self.limit = None

    def exchange(
        self,
        pieces: Sequence[Piece],
        size: int,
        count: int = 1,
        *,
        once: bool = False,
        undo: bytes | None = None,
    ) -> list[Reply] | None:
        """Sends commands on a connection of this thread's, and takes their replies.

        Args:
            pieces: The commands.
            size: Their bytes.
            count: How many replies there will be.
            once: Whether they must not be sent a second time, so that it matters if the connection
                is good.
            undo: The name of a key that is removed when the caller is interrupted.

        Returns:
            The replies; None if all connections are in use, and nothing was done.

        Raises:
            ConnectorError: As for `Pool.requests`.
        """
        wire = self._take(once)
        if wire is None:
            return None
        try:
            replies = wire.exchange(pieces, size, count)
        except _LOST:
            wire.close()
            self._drop_idle()
            self._check_open()  # closed by you, not lost
            with map_errors(self._options):
                raise
        except BaseException:
            # Somebody who is interrupted knows nothing of the replies; what was sent takes effect
            # now, and not after what is asked next.
            if once or undo:
                remove = command("UNLINK", undo) if undo else None
                if wire.finish(remove) and remove:  # again, for it may not have been sent
                    with contextlib.suppress(Exception):
                        self.exchange([remove], len(remove))
            wire.close()
            raise
        self._idle.append(wire)
        if self._closed:
            self._drop_idle()
        for reply in replies:
            if isinstance(reply, Exception):
                with map_errors(self._options):
                    raise reply
        return replies

    def close(self) -> None:
        """Closes every connection; calls in other threads end with ConnectorClosedError."""
        self._closed = True
        self._drop_idle()
        for wire in self._alive():
            wire.end()

    def _alive(self) -> list[BlockingWire]:
        wires = [ref() for ref in list(self._made)]
        return [wire for wire in wires if wire is not None and not wire.closed]

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectorClosedError(f"the connector of {self._options.where} was closed")

    def _drop_idle(self) -> None:
        # The others may have ended the same way.
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _take(self, once: bool) -> BlockingWire | None:
        self._check_open()
        with contextlib.suppress(IndexError):
            while True:
                # The one used last: those at the bottom stay unused, and the server may drop them.
                wire = self._idle.pop()
                if not (once and wire.stale):
                    return wire
                wire.close()
        seat = _Seat()
        self._seats.add(weakref.ref(seat, self._seats.discard))
        if len(self._seats) > self._most:
            return None
        with map_errors(self._options, connecting=True):
            sock, refusal = self._connect()
        wire = BlockingWire(sock, refusal, self._options.timeout, seat)
        self._made.add(weakref.ref(wire, self._made.discard))
        if self._closed:  # meanwhile
            wire.close()
            self._check_open()
        return wire

    def _connect(self) -> tuple[socket.socket, Callable[[str], Exception]]:
        """Connects in a thread: to look up a name, for example, has no time-out of its own."""
        options = self._options
        if options.tls and self._tls is None:
            self._tls = tls_context(options)
        tls = self._tls
        made: queue.SimpleQueue[object] = queue.SimpleQueue()
        given_up = False

        def connect() -> None:
            try:
                made.put(connect_blocking(options, tls))
            except BaseException as error:  # noqa: BLE001 - carried
                made.put(error)
            if given_up:
                drop()

        def drop() -> None:
            with contextlib.suppress(queue.Empty):
                late = made.get_nowait()
                if isinstance(late, tuple):
                    late[0].close()

        try:
            _connecting.submit(connect)
        except IOThreadError:  # the interpreter is exiting
            return connect_blocking(options, tls)
        try:
            found = made.get(timeout=options.connect_timeout)
        except BaseException as error:
            given_up = True
            drop()
            if isinstance(error, queue.Empty):
                raise TimeoutError from None
            raise
        if isinstance(found, BaseException):
            try:
                raise found
            finally:
                del found  # it refers to this frame: break the circle
        return found  # type: ignore[return-value]
