"""Requests of aiohttp as those of `transport`, and replies back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

from proxyplane.connectors.endpoint.keys import LONGEST_KEY
from proxyplane.endpoint.replies import problem
from proxyplane.endpoint.transport import Caller, Handler, Reply, Request

__all__ = ["make_server"]

log = logging.getLogger("proxyplane.endpoint")

_LINE_BYTES = 2 * LONGEST_KEY
_IDLE_SECONDS = 300.0
_LINGER_SECONDS = 5.0


def make_server(
    identify: Callable[[web.BaseRequest], Caller | Reply], handler: Handler, patience: float
) -> web.Server:
    """The server of one port or socket.

    Args:
        identify: Says who asks; or what to answer to one who may not.
        handler: Answers the others.
        patience: Seconds without progress after which a body, either way, is given up: whoever
            was at the other end may be gone without a word. And seconds within which somebody who
            has connected must have asked something.
    """

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        server.has_asked(request.protocol)
        caller = identify(request)
        if isinstance(caller, Reply):
            return await _respond(request, caller, patience)
        size = request.content_length
        if size is None:
            if request.can_read_body:
                refusal = problem("bad-request", "a body needs a Content-Length")
                return await _respond(request, refusal, patience)
            size = 0
        asked = Request(
            request.method, request.raw_path, request.headers, size, _body(request, patience)
        )
        reply = await handler(caller, asked)
        try:
            return await _respond(request, reply, patience)
        finally:
            if reply.close is not None:
                await reply.close()

    server = _Server(
        serve,
        patience,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=_IDLE_SECONDS,
        lingering_time=_LINGER_SECONDS,
        logger=_log_of_http,
        max_line_size=_LINE_BYTES,
        read_bufsize=1 << 18,
    )
    return server


class _Server(web.Server):
    """A server that does not let those stay who connect and say nothing."""

    def __init__(self, handler: Any, patience: float, **options: Any) -> None:
        super().__init__(handler, **options)
        self._patience = patience
        self._silent: dict[web.RequestHandler, asyncio.TimerHandle] = {}

    def __call__(self) -> web.RequestHandler:
        """The protocol of a new connection."""
        made = super().__call__()
        loop = asyncio.get_running_loop()
        self._silent[made] = loop.call_later(self._patience, self._hang_up, made)
        return made

    def has_asked(self, protocol: web.RequestHandler) -> None:
        """Somebody has: this one may stay."""
        timer = self._silent.pop(protocol, None)
        if timer is not None:
            timer.cancel()

    def _hang_up(self, protocol: web.RequestHandler) -> None:
        del self._silent[protocol]
        if protocol.transport is not None:
            protocol.transport.abort()


def _is_our_affair(record: logging.LogRecord) -> bool:
    """Leaves out the tracebacks of what others sent that is no HTTP; they were told."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | ConnectionError)


_log_of_http = logging.getLogger("proxyplane.endpoint.http")
_log_of_http.addFilter(_is_our_affair)


async def _body(request: web.BaseRequest, patience: float) -> AsyncIterator[bytes]:
    content = request.content
    try:
        while True:
            async with asyncio.timeout(patience):
                piece = await content.readany()
            if not piece:
                return
            yield piece
    except (ClientError, HttpProcessingError, asyncio.IncompleteReadError) as error:
        raise ConnectionResetError("the body ended before its end") from error


async def _respond(request: web.BaseRequest, reply: Reply, patience: float) -> web.StreamResponse:
    if isinstance(reply.body, bytes) and request.method != "HEAD":
        return web.Response(status=reply.status, headers=reply.fields, body=reply.body)
    response = web.StreamResponse(status=reply.status, headers=reply.fields)
    response.content_length = reply.size
    await response.prepare(request)
    if request.method != "HEAD" and not isinstance(reply.body, bytes):
        try:
            async for piece in reply.body:
                async with asyncio.timeout(patience):
                    await response.write(piece)
        except (OSError, EOFError) as error:
            # Too late to say so: what the other side has got is shorter than it was told.
            log.debug("%s %s ended early: %s", request.method, request.remote, error)
            if request.transport is not None:
                request.transport.abort()
        finally:
            await reply.body.aclose()  # type: ignore[attr-defined]  # they are generators
    await response.write_eof()
    return response
