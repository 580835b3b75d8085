"""The first transport: HTTP/1.1 over mutual TLS 1.3, with certificates nobody else vouches for.

Who answers is known by the fingerprint of the certificate, which is compared before anything is
said. Who comes is known in the same way, but OpenSSL admits only certificates that it has been
given. So there is an introduction: a connection without a certificate, on which nothing but one's
own certificate can be handed in. It is kept if its fingerprint is on the list, and admitted from
then on. It proves nothing; the handshake with it does.

A refused certificate is heard of only when one reads (TLS 1.3), so each connection is tried with a
small request before it is used for others; if that fails, an introduction is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Final

from aiohttp import web

from proxyplane.connectors.endpoint.channel import Channel, NotSentError
from proxyplane.connectors.endpoint.keys import id_of
from proxyplane.connectors.endpoint.problems import error_of
from proxyplane.connectors.endpoint.watch import Watch
from proxyplane.connectors.endpoint.wire import Connection, Head, ProtocolError
from proxyplane.endpoint.http import make_server
from proxyplane.endpoint.identity import certificate_of, client_context, server_context
from proxyplane.endpoint.peers import Peers
from proxyplane.endpoint.replies import problem
from proxyplane.endpoint.settings import parse_address
from proxyplane.endpoint.transport import Caller, Handler, Link, Peer, Reply, Request
from proxyplane.exceptions import (
    ConnectorClosedError,
    ConnectorError,
    ConnectorLostError,
    NotAllowedError,
    PeerUnreachableError,
)

__all__ = ["HttpsTransport"]

log = logging.getLogger("proxyplane.endpoint")

CONNECT_SECONDS: Final = 5.0
PROGRESS_SECONDS: Final = 20.0
_HELLO = "/v1/hello"
_CERTIFICATE_BYTES = 1 << 14
_CONNECTIONS = 16
_CARRIED = ("range", "accept-ranges", "content-range", "etag", "problem", "content-type")


class HttpsTransport:
    """Serves peers on a port, and goes to theirs.

    Args:
        identity: The path of this endpoint's identity.
        address: Where to listen, ``host:port``, or empty.
        silence: Seconds of silence after which a peer counts as lost.
    """

    def __init__(self, identity: str, address: str, silence: float) -> None:
        self._silence = silence
        self._identity = identity
        self._address = address
        self._certificate = certificate_of(identity)
        self._plain = client_context(None)
        self._mutual = client_context(identity)
        self._server = server_context(identity)
        self._runner: web.ServerRunner | None = None
        self._peers: Peers | None = None
        self._introduced: set[str] = set()

    def admit(self, peers: Peers) -> None:
        """Says who may come."""
        self._peers = peers

    async def listen(self, handler: Handler) -> None:
        """Begins to serve peers."""
        if not self._address:
            return

        async def serve(caller: Caller, request: Request) -> Reply:
            if request.path == _HELLO and request.method == "POST":
                return await self._introduce(request)
            if not caller.name:
                return problem("not-allowed", "a certificate is needed for this")
            if request.path == _HELLO:
                return Reply(204)
            return await handler(caller, request)

        host, port = parse_address(self._address)
        self._runner = web.ServerRunner(make_server(self._identify, serve, 5 * self._silence))
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=self._server, reuse_address=True)
        await site.start()

    def _identify(self, request: web.BaseRequest) -> Caller | Reply:
        transport = request.transport
        shown = transport and transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        if not shown:
            return Caller("", local=False, rights=frozenset())
        peer = None if self._peers is None else self._peers.by_id(id_of(shown))
        if peer is None:  # taken off the list since
            return problem("not-allowed", "this endpoint does not have yours on its list")
        return Caller(peer.name, local=False, rights=peer.rights)

    async def _introduce(self, request: Request) -> Reply:
        if not 0 < request.size <= _CERTIFICATE_BYTES:
            return problem("bad-request", "a certificate is expected")
        certificate = b"".join([bytes(piece) async for piece in request.body])
        id = id_of(certificate)
        if self._peers is None or self._peers.by_id(id) is None:
            log.warning("refused %s, which is not on the list", id)
            return problem(
                "not-allowed",
                "this endpoint does not have yours on its list",
                f"there: proxyplane endpoint configure NAME --peer OTHER={id}@HOST:PORT",
            )
        if id not in self._introduced:
            try:
                self._server.load_verify_locations(cadata=certificate)
            except ssl.SSLError:
                return problem("bad-request", "a certificate is expected")
            self._introduced.add(id)
        return Reply(204)

    def open(self, peer: Peer) -> Link:
        """The way to a peer."""
        return _HttpsLink(peer, self._certificate, self._plain, self._mutual, self._silence)

    async def aclose(self) -> None:
        """Ends serving."""
        if self._runner is not None:
            await self._runner.cleanup()


class _HttpsLink:
    """The connections to one peer."""

    def __init__(
        self,
        peer: Peer,
        certificate: bytes,
        plain: ssl.SSLContext,
        mutual: ssl.SSLContext,
        silence: float,
    ) -> None:
        self._patience = silence
        self._peer = peer
        self._certificate = certificate
        self._plain = plain
        self._mutual = mutual
        self._loop = asyncio.get_running_loop()
        self._introductions = 0
        self._introducing = asyncio.Lock()
        self._channel = Channel(self._connect, limit=_CONNECTIONS)
        self.watch = Watch(self._channel, on_lost=self._on_lost, silence=silence)
        self._heard = self._lost = 0.0

    @property
    def up(self) -> bool:
        """Whether something was heard of the peer lately, and since it was lost."""
        return self._silence() < self._patience and self._last_heard() > self._lost

    def _last_heard(self) -> float:
        return max(self._channel.last_heard, self._heard)

    def _silence(self) -> float:
        return self._loop.time() - (self._last_heard() or -math.inf)

    def _on_lost(self, error: BaseException) -> None:
        """The stream was lost: so is the rest, unless something else was heard."""
        if self._lost <= self._last_heard():
            log.warning("lost the peer %s: %s", self._peer.name, error)
            self._lost = self._loop.time()
        if self._silence() >= self._patience:
            self._channel.abort(ConnectionError(f"nothing was heard for {self._patience:g} s"))

    @contextlib.asynccontextmanager
    async def request(self, request: Request) -> AsyncIterator[Reply]:
        """Carries a request; see `Link.request`."""
        self.watch.keep()
        with self._errors():
            async with self._channel.exchange(
                request.method,
                request.path,
                fields=request.fields,
                size=request.size,
                body=request.body if request.size else (),
            ) as answer:
                self._heard = self._loop.time()
                fields = {one: answer.fields[one] for one in _CARRIED if one in answer.fields}
                if request.method == "HEAD":
                    size = int(answer.fields.get("content-length", "0"))
                    reply = Reply(answer.status, fields, size, b"")
                else:
                    reply = Reply(answer.status, fields, answer.size, answer.connection.pieces())
                yield reply

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        name = f"the endpoint {self._peer.name!r} at {self._peer.address or 'no address'}"
        try:
            yield
        except NotSentError as error:
            raise PeerUnreachableError(
                f"{name} cannot be reached: {error.__cause__ or error}",
                hint="does it run, and is its port open in the firewall of its site?",
            ) from error
        except ProtocolError as error:
            raise ConnectorError(f"{name} does not speak as an endpoint: {error}") from error
        except (OSError, EOFError) as error:
            raise ConnectorLostError(
                f"the link to {name} was lost; the operation may or may not have happened"
            ) from error

    async def _connect(self) -> Connection:
        if not self._peer.address:
            raise ConnectionError("it has no address here; only it can come to us")
        introductions = self._introductions
        connection = await self._dial(self._mutual)
        if await self._try(connection):
            return connection
        # It does not know us, or not any more: it was restarted.
        async with self._introducing:
            if introductions == self._introductions:
                await self._introduce()
                self._introductions += 1
        connection = await self._dial(self._mutual)
        if await self._try(connection):
            return connection
        raise ConnectionError("it took the introduction, and refuses the certificate")

    async def _try(self, connection: Connection) -> bool:
        """Whether the peer admits this connection."""
        try:
            head = f"GET {_HELLO} HTTP/1.1\r\nHost: peer\r\n\r\n"
            async with asyncio.timeout(self._patience):
                answer = await connection.request(head.encode())
                text = await connection.read_rest()
        except TimeoutError:  # which is no refusal
            connection.abort()
            raise
        except (OSError, ProtocolError):
            connection.abort()
            return False
        except BaseException:
            connection.abort()
            raise
        if answer.status != 204:
            connection.abort()
            raise self._refused(answer, text)
        return True

    async def _introduce(self) -> None:
        connection = await self._dial(self._plain)
        try:
            head = f"POST {_HELLO} HTTP/1.1\r\nHost: peer\r\nContent-Length: "
            head += f"{len(self._certificate)}\r\n\r\n"
            async with asyncio.timeout(self._patience):
                answer = await connection.request(head.encode(), [memoryview(self._certificate)])
                text = await connection.read_rest()
        except ProtocolError as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.abort()
        if answer.status != 204:
            raise self._refused(answer, text)

    def _refused(self, answer: Head, text: bytes) -> ConnectorError:
        return error_of(answer.fields, text) or NotAllowedError(
            f"the endpoint {self._peer.name!r} answered {answer.status} to the introduction"
        )

    async def _dial(self, context: ssl.SSLContext) -> Connection:
        host, port = parse_address(self._peer.address)
        patience = min(CONNECT_SECONDS, self._patience)
        async with asyncio.timeout(patience):
            transport, connection = await self._loop.create_connection(
                lambda: Connection(PROGRESS_SECONDS),
                host,
                port,
                ssl=context,
                server_hostname="",
                ssl_handshake_timeout=patience,
            )
        shown = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        if shown is None or id_of(shown) != self._peer.id:
            connection.abort()
            raise NotAllowedError(
                f"who answers at {self._peer.address} is not the endpoint {self._peer.name!r}: its "
                "certificate has another fingerprint",
                hint="ask the operator of that site for the id, by another way",
            )
        return connection

    async def aclose(self) -> None:
        """Ends it."""
        await self.watch.aclose(ConnectorClosedError("the endpoint is stopping"))
        await self._channel.aclose()
