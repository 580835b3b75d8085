"""A TCP proxy that delays, resets, cuts at a byte, or goes half-open, at the test's command."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Literal

Fault = Literal["close", "reset", "stall"]
Direction = Literal["up", "down"]  # up: to the server


class TCPProxy:
    """Forwards connections from a free port of 127.0.0.1 to a server.

    Used as an async context manager, on the loop of the test. What is set applies at once, also to
    connections that are open.

    Attributes:
        port: Where it listens.
        delay: Seconds that each chunk waits.
        piece: Bytes of a chunk, at most.
        refuses: Whether new connections are ended at once.
        cut: After how many bytes in a direction, counted over all connections since it was set,
            what happens: "close" ends the connection, "reset" does so with a RST, "stall" forwards
            nothing more in either direction and says nothing (half-open). It happens once.
        accepted: Connections so far.
        cuts: Faults at a byte so far.
        forwarded: Bytes so far, in each direction.
        newest: The same, of the connection that was accepted last.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self.port = 0
        self.delay = 0.0
        self.piece = 1 << 16
        self.refuses = False
        self.accepted = self.cuts = 0
        self.forwarded = {"up": 0, "down": 0}
        self.newest: dict[Direction, int] = {"up": 0, "down": 0}
        self._cut: tuple[Direction, int, Fault] | None = None
        self._cut_later: tuple[int, tuple[Direction, int, Fault]] | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    def cut(self, direction: Direction, after: int, fault: Fault) -> None:
        """Cuts the connection that carries the byte `after`, counted from now."""
        self._cut = (direction, self.forwarded[direction] + after, fault)

    def cut_later(self, nth: int, direction: Direction, after: int, fault: Fault) -> None:
        """Cuts the connection that is accepted `nth` from now, at its byte `after`."""
        self._cut_later = self.accepted + nth, (direction, after, fault)

    def reset_all(self) -> None:
        """Resets every open connection."""
        for link in list(self._links):
            link.end("reset")

    def stall_all(self) -> None:
        """Lets every open connection go half-open."""
        for link in list(self._links):
            link.end("stall")

    async def __aenter__(self) -> TCPProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for link in list(self._links):
            link.end("close")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refuses:
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, up_writer)
        if self._cut_later is not None and self._cut_later[0] == self.accepted:
            link.cut, self._cut_later = self._cut_later[1], None
        self.newest = link.forwarded
        self._links.add(link)
        pumps = [
            asyncio.create_task(self._pump("up", link, reader, up_writer)),
            asyncio.create_task(self._pump("down", link, up_reader, writer)),
        ]
        self._tasks.update(pumps)
        try:
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._tasks.difference_update(pumps)
            self._links.discard(link)
            link.end("close")

    async def _pump(
        self,
        direction: Direction,
        link: _Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            while chunk := await reader.read(self.piece):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if link.stalled:
                    await asyncio.Event().wait()
                chunk, fault = self._take(direction, link, chunk)
                writer.write(chunk)
                await writer.drain()
                if fault is not None:
                    link.end(fault)
        except OSError:
            pass
        link.end("close")

    def _take(self, direction: Direction, link: _Link, chunk: bytes) -> tuple[bytes, Fault | None]:
        fault = None
        if self._cut is not None and self._cut[0] == direction:
            left = self._cut[1] - self.forwarded[direction]
            if left <= len(chunk):
                chunk, fault = chunk[: max(left, 0)], self._cut[2]
                self._cut = None
        if link.cut is not None and link.cut[0] == direction:
            left = link.cut[1] - link.forwarded[direction]
            if left <= len(chunk):
                chunk, fault = chunk[: max(left, 0)], link.cut[2]
                link.cut = None
        self.cuts += fault is not None
        self.forwarded[direction] += len(chunk)
        link.forwarded[direction] += len(chunk)
        return chunk, fault


class _Link:
    """One connection through the proxy."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        self.stalled = False
        self.cut: tuple[Direction, int, Fault] | None = None
        self.forwarded: dict[Direction, int] = {"up": 0, "down": 0}

    def end(self, fault: Fault) -> None:
        if fault == "stall":
            self.stalled = True
            return
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if fault == "reset" and sock is not None and sock.fileno() >= 0:
                # Linger for no time: closing discards what is unsent and sends a RST.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()
