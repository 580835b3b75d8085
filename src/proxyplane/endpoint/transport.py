"""How endpoints reach each other: what a transport must do, whatever it is made of.

A transport carries requests to a peer and brings back answers. It knows who the peer is by its id,
which it has proved: with the first transport (`https`) by the certificate of mutual TLS. What is
asked and answered it does not look at. It must be able to carry many requests at once, bodies of
any size with back-pressure in both directions, and answers without an end.

Another transport has to bring a `Transport` and a `Link`; docs/decisions tells what it must do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from proxyplane.connectors.endpoint.watch import Watch

__all__ = ["Body", "Caller", "Handler", "Link", "Peer", "RIGHTS", "Reply", "Request", "Transport"]

RIGHTS = ("read", "write", "wait")
Body = AsyncIterator[bytes | bytearray | memoryview]


@dataclass(frozen=True)
class Peer:
    """Another endpoint, as this one knows it.

    Attributes:
        name: What it is called here.
        id: Its id.
        address: Where it listens, ``host:port``; empty if it can only come to us.
        rights: What it may do here, of `RIGHTS`.
    """

    name: str
    id: str
    address: str
    rights: frozenset[str] = frozenset(RIGHTS)


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        name: For the log.
        local: Whether it is a process of this machine, whose requests may be forwarded.
        rights: What it may do.
    """

    name: str
    local: bool
    rights: frozenset[str]


@dataclass
class Request:
    """What is asked: the parts of an HTTP request, whatever carries them.

    Attributes:
        method: Of HTTP.
        path: From the slash on.
        fields: Headers, by their names in lower case.
        size: Bytes of the body.
        body: Its pieces.
    """

    method: str
    path: str
    fields: Mapping[str, str]
    size: int
    body: Body


@dataclass
class Reply:
    """What is answered.

    Attributes:
        status: Of HTTP.
        fields: Headers.
        size: Bytes of the body; None for one without an end.
        body: Its pieces, or all of it.
        close: To be called when the body was read, or will not be.
    """

    status: int
    fields: Mapping[str, str] = field(default_factory=dict)
    size: int | None = 0
    body: Body | bytes = b""
    close: Callable[[], Awaitable[object]] | None = None


Handler = Callable[[Caller, Request], Awaitable[Reply]]


class Link(Protocol):
    """The way to one peer."""

    watch: Watch
    """Waits there; it is also what notices that the peer is dead."""

    def request(self, request: Request) -> AbstractAsyncContextManager[Reply]:
        """Carries a request; the body of the reply is to be read inside the block.

        Raises:
            PeerUnreachableError: The peer cannot be reached; nothing has happened.
            ConnectorLostError: The link broke; the request may have been served.
            NotAllowedError: The peer does not know this endpoint.
        """
        ...

    @property
    def up(self) -> bool:
        """Whether something was heard of the peer within the last seconds."""
        ...

    async def aclose(self) -> None:
        """Ends it; requests under way fail."""
        ...


class Transport(Protocol):
    """One way of reaching peers, and of being reached."""

    async def listen(self, handler: Handler) -> None:
        """Begins to serve peers, each as the `Caller` that it has proved to be."""
        ...

    def open(self, peer: Peer) -> Link:
        """The way to a peer; connects when it is used, and again when it was lost."""
        ...

    async def aclose(self) -> None:
        """Ends everything."""
        ...
