"""A slow medium: a server in front of a server that passes on what comes, some time later.

It delays what clients send, each piece by the same time, and what they get not at all: so a request
takes that much longer, and any number of requests on as many connections take it together.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from multiprocessing.connection import Connection


def run_delay(connection: Connection, port: int, seconds: float) -> None:
    """Runs one in this process until told to end; sends its port first."""
    asyncio.run(_run(connection, port, seconds))


async def _run(connection: Connection, port: int, seconds: float) -> None:
    served: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        behind, ahead = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, ahead))
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(_pass(reader, ahead, seconds), _pass(behind, writer, 0.0))
        served.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    connection.send(server.sockets[0].getsockname()[1])
    await asyncio.to_thread(connection.recv)
    server.close()
    for task in list(served):
        task.cancel()
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    while piece := await reader.read(1 << 20):
        if seconds:
            loop.call_later(seconds, functools.partial(_write, writer, piece))
        else:
            _write(writer, piece)
            await writer.drain()
    loop.call_later(seconds, writer.close)


def _write(writer: asyncio.StreamWriter, piece: bytes) -> None:
    if not writer.is_closing():
        writer.write(piece)
