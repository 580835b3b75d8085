"""Requests to one endpoint, over as many connections as are needed at once."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final

from proxyplane.connectors.endpoint.wire import Connection, Head, Tell

__all__ = ["Answer", "Channel", "NotSentError"]

Body = Sequence[memoryview] | AsyncIterable[bytes | bytearray | memoryview]

_IDLE_SECONDS: Final = 60.0
_MESSAGE_BYTES: Final = 1 << 20


class NotSentError(Exception):
    """No connection could be made, so nothing has happened; the cause is in ``__cause__``."""


class Answer:
    """An answer whose body was not read yet.

    Attributes:
        status: The HTTP status.
        fields: The headers, by their names in lower case.
        size: Bytes of the body; None for a stream.
    """

    def __init__(self, connection: Connection, head: Head) -> None:
        self.status, self.fields, self.size = head
        self.connection = connection

    async def body(self, tell: Tell = None) -> bytearray | mmap.mmap:
        """All of the body, in memory of its own; tells how much of it has come."""
        return await self.connection.read(self.size or 0, tell)

    async def text(self) -> bytes:
        """All of a short body."""
        return await self.connection.read_rest(_MESSAGE_BYTES)


class Channel:
    """The connections to one endpoint, for one event loop.

    Args:
        connect: Makes one.
        limit: How many there are at most; callers wait while all are in use.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        limit: int,
    ) -> None:
        self._connect = connect
        self._fields = ""
        self._places = asyncio.Semaphore(limit)
        self._idle: list[tuple[Connection, float]] = []
        self._all: set[Connection] = set()
        self._loop = asyncio.get_running_loop()
        self.closed = False

    def set_fields(self, fields: Mapping[str, str]) -> None:
        """Sets the headers of every request."""
        self._fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items())

    @property
    def last_heard(self) -> float:
        """When something came over any of the connections, by the loop's clock."""
        return max((one.last_heard for one in self._all), default=0.0)

    @contextlib.asynccontextmanager
    async def exchange(
        self,
        method: str,
        path: str,
        *,
        fields: Mapping[str, str] | None = None,
        size: int = 0,
        body: Body = (),
        stream: float | None = None,
        tell: Tell = None,
    ) -> AsyncIterator[Answer]:
        """Sends a request and gives the answer, whose body is to be read inside the block.

        Args:
            method: Of HTTP.
            path: From the slash on, quoted.
            fields: More headers.
            size: Bytes of the body.
            body: Its pieces.
            stream: For an answer without an end: seconds of silence after which it counts as lost.
                It takes no place among the others.
            tell: Told how many bytes of the body have gone, if that is a list.

        Raises:
            NotSentError: No connection could be made.
            OSError: The connection was lost; the request may have been served.
            ProtocolError: What came is no answer.
        """
        version = "1.1" if stream is None else "1.0"  # in which nobody sends chunks
        head = f"{method} {path} HTTP/{version}\r\nHost: endpoint\r\n"
        for name, value in (fields or {}).items():
            head += f"{name}: {value}\r\n"
        if size or method in ("PUT", "POST"):
            head += f"Content-Length: {size}\r\n"
        async with self._places if stream is None else contextlib.nullcontext():
            connection = await self._get()
            try:
                if stream is not None:
                    connection.be_patient(stream)
                start = await connection.request(
                    f"{head}{self._fields}\r\n".encode("latin-1"),
                    body,
                    bodiless=method == "HEAD",
                    tell=tell,
                )
                yield Answer(connection, start)
            finally:
                self._put_back(connection)

    async def _get(self) -> Connection:
        while self._idle:
            connection, since = self._idle.pop()
            if connection.idle and self._loop.time() - since < _IDLE_SECONDS:
                return connection
            self._drop(connection)
        try:
            connection = await self._connect()
        except (OSError, EOFError) as error:
            raise NotSentError(str(error)) from error
        if self.closed:
            connection.abort()
            raise NotSentError("closed")
        self._all.add(connection)
        return connection

    def _put_back(self, connection: Connection) -> None:
        if connection.idle and not self.closed:
            self._idle.append((connection, self._loop.time()))
        else:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._all.discard(connection)
        connection.abort()

    def abort(self, reason: BaseException) -> None:
        """Ends all connections; whoever uses one gets `reason`. New ones can be made."""
        for connection in list(self._all):
            connection.abort(reason)
        self._idle.clear()
        self._all.clear()

    async def aclose(self) -> None:
        """Ends all connections, for good."""
        self.closed = True
        connections = list(self._all)
        self.abort(ConnectionAbortedError("closed on this side"))
        for connection in connections:
            await connection.aclose()
