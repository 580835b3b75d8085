"""The other endpoints that this one knows, and the links to them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack

from proxyplane.connectors.endpoint.client import ENDPOINT, LEASE
from proxyplane.endpoint.counting import Counts
from proxyplane.endpoint.transport import Link, Peer, Reply, Request, Transport

__all__ = ["Peers"]

log = logging.getLogger("proxyplane.endpoint")

_CARRIED = ("range", "if-range", LEASE.lower())
"""Headers of a request that mean something to the peer."""


class Peers:
    """The peers of an endpoint.

    Args:
        transport: How they are reached.
        counts: What is counted.
    """

    def __init__(self, transport: Transport | None, counts: Counts) -> None:
        self._transport = transport
        self._counts = counts
        self._peers: dict[str, Peer] = {}
        self._links: dict[str, Link] = {}

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def by_id(self, id: str) -> Peer | None:
        """The peer with this id."""
        return self._peers.get(id)

    def find(self, beginning: str) -> Peer | None:
        """The peer whose id begins so, if there is just one."""
        found = [peer for id, peer in self._peers.items() if id.startswith(beginning)]
        return found[0] if len(found) == 1 and self._transport is not None else None

    async def set(self, peers: Iterable[Peer]) -> None:
        """Takes these peers for those it knows, from now on."""
        before, self._peers = self._peers, {peer.id: peer for peer in peers}
        for id, peer in before.items():
            now = self._peers.get(id)
            if (now is None or now.address != peer.address) and id in self._links:
                await self._links.pop(id).aclose()

    def link(self, peer: Peer) -> Link:
        """The way to a peer."""
        link = self._links.get(peer.id)
        if link is None:
            assert self._transport is not None
            link = self._links[peer.id] = self._transport.open(peer)
        return link

    def is_up(self, peer: Peer) -> bool:
        """Whether something was heard of a peer within the last seconds."""
        return peer.id in self._links and self._links[peer.id].up

    async def forward(self, peer: Peer, request: Request) -> Reply:
        """Carries a request to a peer and its reply back, bodies piece by piece."""
        fields = {ENDPOINT: peer.id}
        for name in _CARRIED:
            if name in request.fields:
                fields[name] = request.fields[name]
        carried = Request(request.method, request.path, fields, request.size, request.body)
        stack = AsyncExitStack()
        reply = await stack.enter_async_context(self.link(peer).request(carried))
        self._counts.bytes_forwarded += request.size + (reply.size or 0)
        if isinstance(reply.body, bytes):
            await stack.aclose()
        else:
            reply.close = stack.aclose
        return reply

    async def aclose(self) -> None:
        """Ends all links."""
        links, self._links = self._links, {}
        for link in links.values():
            await link.aclose()
