"""The connection on which redis-py reads, for those who want its parser and not ours."""

from __future__ import annotations

import asyncio
import contextvars

from redis import exceptions as redis_errors

from proxyplane.connectors.redis.link import Link
from proxyplane.connectors.redis.resp import ROOM
from proxyplane.connectors.redis.url import RedisOptions
from proxyplane.connectors.redis.wire import Wire


class RedisPyWire(Wire):
    """A `Wire` whose replies redis-py reads, parses and makes: ``wire=redis-py``.

    What arrives is handed to the stream that redis-py reads from, and a task takes its replies. All
    else is the same: whose reply it is, who has which connection, when it counts as lost. A reply
    is copied two or three times, and the loop stalls for as long as that takes.
    """

    def __init__(self, link: Link, patience: float) -> None:
        super().__init__(link, patience)
        self._room = bytearray(ROOM)
        self._stream = link.stream
        # In a context of its own: that of the first caller would live as long as the task.
        self._reading = self._loop.create_task(self._read_on(), context=contextvars.Context())
        # A loop that is closed without a word ends this too.
        self._reading._log_destroy_pending = False  # type: ignore[attr-defined]

    async def _read_on(self) -> None:
        """Delivers replies until the connection is lost."""
        parser = self._link.parser
        while not self.lost:
            try:
                self._on_reply(await parser.read_response(disable_decoding=True))
            except (redis_errors.AuthenticationError, redis_errors.BusyLoadingError) as error:
                self._on_reply(error)  # a reply; but redis-py may not have got past it
                self.abort(error)
            except (redis_errors.RedisError, OSError, asyncio.CancelledError) as error:
                self.abort(error)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport writes."""
        return memoryview(self._room)

    def buffer_updated(self, nbytes: int) -> None:
        """The transport has written."""
        self._since = self._loop.time()
        self._stream.data_received(bytes(memoryview(self._room)[:nbytes]))

    def eof_received(self) -> None:
        """The server has closed; the transport follows."""
        self._stream.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        super().connection_lost(exc)
        self._stream.connection_lost(exc)


def new_wire(link: Link, options: RedisOptions) -> Wire:
    """The connection that the options ask for."""
    kind = RedisPyWire if options.wire == "redis-py" else Wire
    return kind(link, options.timeout)
