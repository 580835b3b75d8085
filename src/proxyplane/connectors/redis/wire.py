"""Connections to the server: one pool per event loop, and rules for when one is dropped.

redis-py makes the connection (TLS, login, database, parsing of replies); which connection serves
whom is decided here. Its own pools were tried first: `ConnectionPool` raises when it is exhausted,
and `BlockingConnectionPool` suspends while it takes a connection back, so that a task cancelled
there leaks one, and waits on a condition that on Python 3.11 can lose a wake-up when a waiter is
cancelled. Here taking is one semaphore and giving back never suspends.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, cast

from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection, Connection, UnixDomainSocketConnection

from proxyplane._runtime.workers import run_in_worker
from proxyplane.connectors.redis.errors import map_errors
from proxyplane.connectors.redis.url import RedisOptions
from proxyplane.exceptions import (
    ConfigError,
    ConnectorClosedError,
    ConnectorLostError,
    ConnectorUnavailableError,
)

# A command is handed to the transport in slices of this size. Until Python 3.11 a transport joins
# what it is given, and later ones keep it until it is sent: so no more than a slice is ever
# copied, no more than a slice stalls the loop, and a cancelled put leaves no more than this of the
# caller's memory to a dying transport. From 512 KiB up the size makes no difference in speed.
SLICE = 1 << 20

# Up to here to join the pieces of a command is cheaper than anything else.
_SMALL = 16 << 10

Piece = bytes | bytearray | memoryview

# redis-py tells the server its own version, which it reads from the installed package's metadata
# for each connection anew: files, on the loop. How to have it say nothing depends on its version.
_QUIET: dict[str, Any] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)


class Wire(AbstractConnection):
    """One connection, which knows whether it is in step with the server.

    Attributes:
        owed: Replies that were asked for and not yet read. A connection that is given back with
            one of them outstanding would answer the next caller with it, so it is dropped.
        midway: Whether the server holds state for this caller, such as a transaction.
    """

    owed: int = 0
    midway: bool = False
    patience: float | None = None

    async def send(self, pieces: Iterable[Piece], replies: int) -> None:
        """Sends commands, without joining their pieces.

        Raises:
            TimeoutError: A slice was not taken within the time-out.
        """
        self.owed += replies
        pieces = list(pieces)
        if sum(map(len, pieces)) <= _SMALL and self._writer is not None and not self._unsent():
            # Goes to the kernel at once, so there is nothing to wait for. A connection that is
            # closing says so to the reader of the replies.
            self._writer.write(b"".join(pieces))
            return
        for slice_ in _slices(pieces):
            if not self.is_connected:
                # redis-py would reconnect, and send the rest of a command to a new session.
                raise redis_errors.ConnectionError("the connection was closed while sending")
            try:
                async with asyncio.timeout(self.patience):
                    # Typed for bytes, but made for whatever a transport takes.
                    await self.send_packed_command(cast("list[bytes]", slice_), check_health=False)
            finally:
                slice_.clear()  # a view held by a traceback would keep the caller's map open

    def _unsent(self) -> int:
        """Bytes that the transport still holds."""
        assert self._writer is not None
        return self._writer.transport.get_write_buffer_size()

    async def ask(self, *commands: tuple[Any, ...]) -> None:
        """Sends small commands together; `read` their replies in order."""
        packed = [piece for command in commands for piece in self.pack_command(*command)]
        await self.send(packed, len(commands))

    async def read(self) -> Any:
        """The next reply.

        Raises:
            redis.ResponseError: The server replied with an error; the connection stays in step.
            TimeoutError: It did not come within the time-out.
        """
        async with asyncio.timeout(self.patience):
            try:
                reply = await self.read_response()
            except redis_errors.ResponseError:
                self.owed -= 1
                raise
        self.owed -= 1
        return reply

    async def read_few(self, count: int) -> tuple[list[Any], redis_errors.ResponseError | None]:
        """The next replies, which come together, and the first refusal among them.

        Raises:
            TimeoutError: Not all of them came within the time-out.
        """
        replies: list[Any] = []
        refusal: redis_errors.ResponseError | None = None
        async with asyncio.timeout(self.patience):
            for _ in range(count):
                try:
                    replies.append(await self.read_response())
                except redis_errors.ResponseError as exc:
                    refusal = refusal or exc
                self.owed -= 1
        return replies, refusal

    async def call(self, *command: Any) -> Any:
        """Sends one small command and reads its reply."""
        await self.ask(command)
        return await self.read()

    def is_stale(self) -> bool:
        """Whether the server has closed this idle connection, as far as the loop has noticed."""
        return self._reader is None or self._reader.at_eof() or self._reader.exception() is not None

    def abort(self) -> None:
        """Closes at once: what was not sent is never sent, and no reply is read any more."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._parser.on_disconnect()  # type: ignore[no-untyped-call]
        self._reader = self._writer = None

    async def disconnect(self, nowait: bool = False, *args: Any, **kwargs: Any) -> None:
        """Closes; redis-py calls it with `nowait` when a step failed or was cancelled.

        Its own lets the transport send the rest even then, so a cancelled put would go on, from
        memory that its caller may change by now.
        """
        if nowait:
            self.abort()
        else:
            await super().disconnect(nowait, *args, **kwargs)


class TCPWire(Wire, Connection):
    """Over TCP, with TLS when it was given a context."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, **kwargs: Any) -> None:
        self.tls = tls
        super().__init__(**kwargs)

    def _connection_arguments(self) -> Mapping[str, Any]:
        # redis-py's own TLS connection reads the certificates anew for each connection.
        return {"host": self.host, "port": self.port, "ssl": self.tls}


class UnixWire(Wire, UnixDomainSocketConnection):
    """Over a socket of this machine."""

    async def _connect(self) -> None:
        # redis-py's logs in here, and then a second time like every other connection.
        self._reader, self._writer = await asyncio.open_unix_connection(path=self.path)


def make_tls_context(options: RedisOptions) -> ssl.SSLContext:
    """The TLS settings of a connector; reads files.

    Raises:
        OSError: A file cannot be read, or is no certificate (`ssl.SSLError`).
    """
    context = ssl.create_default_context(cafile=options.ssl_ca_certs)
    context.check_hostname = options.ssl_check_hostname
    if options.ssl_certfile:
        context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
    return context


async def load_tls_context(options: RedisOptions) -> ssl.SSLContext:
    """The same, off the loop.

    Raises:
        ConfigError: A file cannot be used; the message names those that are configured.
    """
    try:
        return await run_in_worker(make_tls_context, options)
    except OSError as exc:
        named = [
            f"{name}={value}"
            for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
            if (value := getattr(options, name))
        ]
        raise ConfigError(
            f"the certificates for {options.where} cannot be used ({', '.join(named)}): {exc}"
        ) from exc


class Pool:
    """The connections of one event loop, made on demand, used by one caller at a time.

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
        self._closed = False

    @contextlib.asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        """A connection for one caller; waits when all are in use.

        It goes back to the pool only if every reply was read, whatever ends the block.

        Raises:
            ConnectorUnavailableError: None can be made.
            ConnectorLostError: It broke inside the block.
            ConnectorClosedError: The pool was closed, before or meanwhile.
        """
        async with self._room:
            self._check_open()
            wire = self._take()
            try:
                async with self._using(wire):
                    yield wire
            finally:
                # No await from here on: a task can be cancelled only where it waits.
                if wire.owed or wire.midway or self._closed or not wire.is_connected:
                    wire.abort()
                else:
                    self._idle.append(wire)

    @contextlib.asynccontextmanager
    async def extra(self) -> AsyncIterator[Wire]:
        """A new connection, not counted as one of the pool's, which ends with the block.

        For what holds a connection for long. Raises what `wire` raises.
        """
        self._check_open()
        wire = self._make()
        try:
            async with self._using(wire):
                yield wire
        finally:
            wire.abort()

    @contextlib.asynccontextmanager
    async def _using(self, wire: Wire) -> AsyncIterator[None]:
        self._busy.add(wire)
        try:
            if not wire.is_connected:
                with map_errors(self._options, connecting=True):
                    await self._connect(wire)
            with map_errors(self._options):
                yield
        except (ConnectorLostError, ConnectorUnavailableError) as error:
            self._check_open()  # closed by you, not lost
            if isinstance(error, ConnectorLostError):
                # The idle ones may have ended the same way. If that was without a word, each
                # would cost the next callers a time-out.
                self._drop_idle()
            raise
        finally:
            self._busy.discard(wire)

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectorClosedError(f"the connector of {self._options.where} was closed")

    def _take(self) -> Wire:
        # The one used last: those at the bottom stay unused, and the server may drop them.
        while self._idle:
            wire = self._idle.pop()
            if not wire.is_stale():
                return wire
            wire.abort()
        return self._make()

    def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for wire in idle:
            wire.abort()

    def _make(self) -> Wire:
        options = self._options
        common: dict[str, Any] = {
            "db": options.db,
            "username": options.username,
            "password": options.password,
            "protocol": 2,  # spares the HELLO, which servers before 6.0 do not know
            "socket_timeout": None,  # each step has one of its own, see Wire.send and Wire.read
            "socket_connect_timeout": None,
            **_QUIET,
        }
        wire: Wire
        if options.scheme == "unix":
            wire = UnixWire(path=options.path, **common)
        else:
            wire = TCPWire(host=options.host, port=options.port, tls=self._tls, **common)
        wire.patience = options.timeout
        return wire

    async def _connect(self, wire: Wire) -> None:
        async with asyncio.timeout(self._options.connect_timeout):
            await wire.connect()  # type: ignore[no-untyped-call]
            # A server that wants a password takes a connection without one, and hangs up on the
            # first large command without saying why; it answers a small one.
            await wire.ask(("PING",))
            try:
                await wire.read()
            except redis_errors.NoPermissionError:
                pass  # it knows the user, who may not PING

    async def aclose(self) -> None:
        """Closes every connection; callers that wait or are served get ConnectorClosedError."""
        self._closed = True
        for wire in [*self._busy]:
            wire.abort()
        idle, self._idle = self._idle, []
        try:
            for wire in idle:
                # The polite end of TLS needs an answer, which may never come.
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(1):
                        await wire.disconnect()
        finally:  # also when this is cancelled, as it is on the library's loop at exit
            for wire in idle:
                wire.abort()


def _slices(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Groups pieces, and cuts large ones, into lists of at most `SLICE` bytes in all.

    None of the pieces in a list is empty: the transports of Python 3.12 never get past one.
    """
    group: list[Piece] = []
    room = SLICE
    for piece in pieces:
        view = memoryview(piece)
        start = 0
        while start < len(view):
            part = view[start : start + room]
            group.append(part)
            start += len(part)
            room -= len(part)
            if not room:
                yield group
                group, room = [], SLICE
    if group:
        yield group
