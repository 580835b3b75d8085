"""Servers for the tests: processes of their own, never mocks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from redis import Redis

from proxyplane._server import EmbeddedServer

# Runs the tests against another server program, for example Debian's /usr/bin/redis-server.
BINARY_VARIABLE = "PROXYPLANE_TEST_REDIS_SERVER"

POLICIES = [
    "noeviction",
    *(f"{which}-{how}" for which in ("allkeys", "volatile") for how in ("lru", "lfu", "random")),
    "volatile-ttl",
]
"""All values of maxmemory-policy."""


def make_server(*, tcp: bool = True, args: Sequence[str] = ()) -> EmbeddedServer:
    """A server that is not started yet: use it as a context manager."""
    return EmbeddedServer(binary=os.environ.get(BINARY_VARIABLE), tcp=tcp, args=args)


@contextlib.contextmanager
def admin(server: EmbeddedServer, **kwargs: object) -> Iterator[Redis]:
    """A plain client that reaches behind the connector's back."""
    with Redis(unix_socket_path=server.socket_path, **kwargs) as client:
        yield client


def connections(client: Redis) -> int:
    """How many connections the server has, besides the one that asks."""
    return len(client.client_list()) - 1
